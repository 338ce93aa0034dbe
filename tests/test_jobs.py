"""stream/cores/jobs.py, alone; test_fusion_core.py and test_fusion_streams.py cover how jobs are run."""

from __future__ import annotations

import pytest

from emostream.stream.config import Config
from emostream.stream.cores.jobs import Job, Rules, Schedule
from tests.fusion import ALL, MILLISECOND, SECOND, T0, nanoseconds, speech_message


def _schedule(realtime: bool = True, estimates: bool = True) -> Schedule:
    return Schedule(ALL, Rules.from_config(Config(), realtime, estimates))


def _take_all(schedule: Schedule, now_ns: int = T0, flush: bool = True) -> list[Job]:
    jobs = []
    while (job := schedule.take_ready(now_ns, flush)) is not None:
        assert not schedule.done and schedule.take_ready(now_ns, flush) is None  # one at a time
        schedule.finish()
        jobs.append(job)
    return jobs


def test_an_utterance_in_real_time_makes_estimates_a_provisional_label_and_a_label():
    schedule, kinds = _schedule(), []
    events = [
        speech_message("started", 1.1, 7, 1.0, 1.1),
        speech_message("words", 1.6, 7, 1.0, 1.6, "so"),
        speech_message("paused", 2.1, 7, 1.0, 2.0, "so good"),
        speech_message("ended", 2.4, 7, 1.0, 2.0, "so good"),
    ]
    began = []
    for event in events:
        began.append(schedule.push(event, T0))
        kinds.append([(job.kind, job.utterance, job.end_ns / SECOND) for job in _take_all(schedule)])
    assert began == [True, False, False, False]
    assert kinds == [[], [("window", 1, 1.5)], [("pause", 1, 2.0)], [("utterance", 1, 2.0)]]
    assert schedule.at_rest and not schedule.done


@pytest.mark.parametrize(("realtime", "kept"), [(True, ["utterance"]), (False, ["window", "window", "utterance"])])
def test_only_in_real_time_a_newer_job_replaces_waiting_ones(realtime, kept):
    schedule = _schedule(realtime)
    schedule.push(speech_message("started", 1.1, 1, 1.0, 1.1), T0)
    schedule.push(speech_message("words", 1.6, 1, 1.0, 1.6, "so"), T0)
    schedule.push(speech_message("paused", 1.8, 1, 1.0, 1.7, "so"), T0)
    schedule.push(speech_message("ended", 2.1, 1, 1.0, 1.7, "so"), T0)
    assert [job.kind for job in _take_all(schedule)] == kept


def test_a_job_waits_for_both_modalities_or_its_deadline():
    schedule = _schedule(estimates=False)
    schedule.push(speech_message("ended", 2.4, 1, 1.0, 2.0, "so good"), T0)
    schedule.advance("audio", 2 * SECOND)
    schedule.advance("video", nanoseconds(1.9))
    assert schedule.deadline_ns == T0 + 150 * MILLISECOND
    assert _take_all(schedule, schedule.deadline_ns - 1, flush=False) == []
    schedule.advance("video", nanoseconds(1.5))  # never moves a watermark backwards
    assert schedule.watermark_ns["video"] == nanoseconds(1.9)
    assert len(_take_all(schedule, schedule.deadline_ns, flush=False)) == 1


@pytest.mark.parametrize(("late_ms", "wait_ms"), [(100, 150), (800, 400), (5000, 1000)])
def test_where_words_come_late_a_label_waits_longer_for_a_camera(late_ms, wait_ms):
    """The machine is busy, so pictures are late as well; and compared with what the words took, it is little."""
    schedule = _schedule(estimates=False)
    event = speech_message("ended", 2.4, 1, 1.0, 2.0, "so good")
    now_ns = event.captured_ns + late_ms * MILLISECOND
    schedule.push(event, now_ns)
    assert schedule.deadline_ns == now_ns + wait_ms * MILLISECOND


def test_features_are_needed_from_the_open_utterance_or_three_seconds_before_speech_events():
    schedule = _schedule()
    schedule.push(speech_message("progress", 10.0), T0)
    assert schedule.needed_from_ns == 7 * SECOND
    schedule.push(speech_message("started", 10.1, 1, 5.0, 10.1), T0)
    assert schedule.needed_from_ns == 3 * SECOND  # with the two seconds before, in which the face was at rest
    schedule.push(speech_message("ended", 12.0, 1, 5.0, 11.0), T0)
    assert schedule.needed_from_ns == 3 * SECOND  # for the waiting job, with the same time before it
    _take_all(schedule)
    assert schedule.needed_from_ns == 9 * SECOND
    schedule.advance("audio", 100 * SECOND)
    assert schedule.needed_from_ns == (100 - 15 - 10) * SECOND  # a bound in real time, without any speech event


def test_done_and_ahead():
    schedule = _schedule()
    schedule.push(speech_message("progress", 1.0), T0)
    schedule.advance("video", 3 * SECOND)
    assert schedule.ahead_ns == 2 * SECOND
    schedule.end("speech")
    assert schedule.ahead_ns == 0
    for modality in ("audio", "video"):
        assert not schedule.done
        schedule.end(modality)
    assert schedule.done
