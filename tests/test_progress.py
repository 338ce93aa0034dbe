"""Stages of a command and their bars."""

from emostream.train.progress import ProgressBars


def test_a_stage_has_a_bar_from_its_first_step_on():
    progress = ProgressBars()
    step_done = progress.stage("face encoder")
    assert not progress.tasks  # its result may be cached
    step_done(1, 4)
    step_done(3, 4, 0.25)
    (bar,) = progress.tasks
    assert (bar.description, bar.completed, bar.total) == ("face encoder", 3, 4)
    assert bar.fields["loss"] == "loss 0.250"
