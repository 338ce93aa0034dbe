"""Plans the processes that a configuration asks for, and finds its problems before they start."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from emostream.engines.bundle import open_bundle
from emostream.errors import RunError
from emostream.files import user_path
from emostream.stream import models
from emostream.stream.bus import bind_xpub
from emostream.stream.clock import SystemClock
from emostream.stream.config import Bus, Config, Page, Stream
from emostream.stream.encryption import recipients
from emostream.stream.gate import closed
from emostream.stream.keys import Keys, read_client
from emostream.stream.nodes.spec import NodeSpec
from emostream.stream.prior import log_ratios
from emostream.stream.profile import Profile
from emostream.stream.source_spec import SourceSpec
from emostream.stream.sources import file_path, file_tracks, is_regular, of_this_process
from emostream.stream.topics import FUSION, PAGE, RECORD, Medium, NodeKind, node_name


@dataclass
class Plan:
    """The nodes that a configuration asks for, the bundle's labels, and notes about files for the user."""

    specs: list[NodeSpec] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


def make_plan(config: Config, run_dir: Path, clock: SystemClock) -> Plan:
    """Nodes for each stream, and fusion. Opens files and the bundle, so that problems show before anything starts.

    Raises RunError, BundleError, ConfigError, ModelError, BusError or SourceError.
    """
    bundle = open_bundle(config.fusion.bundle)
    log_ratios(config.fusion.prior, bundle.manifest)
    if config.fusion.profile:
        Profile(user_path(config.fusion.profile), bundle).check_writable()
    plan = Plan(labels=bundle.manifest.labels)
    if config.fusion.remote and config.pace == "fast":
        plan.notes.append("fusion.remote is for runs in real time; the networks run here")
    elif config.fusion.remote:
        read_client(Keys(config.bus.keys).client_file)
    options = _check_keys(config.bus, plan.notes) if config.bus.needs_keys else {}
    _try_endpoint(config.bus.emotion, options)
    expected = tuple((stream.name, plan_stream(plan, stream, config, run_dir, clock)) for stream in config.streams)
    producers = tuple(spec.name for spec in plan.specs)
    fusion = NodeSpec("fusion", FUSION, "", config, str(run_dir), clock.offset_ns, inputs=producers, streams=expected)
    plan.specs.append(fusion)
    if config.page.on and config.pace == "fast":
        plan.notes.append("the page is for runs in real time; going on without")
    elif config.page.on:
        if config.page.certificate:
            _check_certificate(config.page, plan.notes)
        token = config.page.token or secrets.token_urlsafe(16)  # chosen here, so that it survives a restart of the page
        page = config.model_copy(update={"page": config.page.model_copy(update={"token": token})})
        plan.specs.append(replace(fusion, kind="page", name=PAGE, config=page))
    if config.record.folder and config.pace == "fast":
        plan.notes.append("recording is for runs in real time; going on without")
    elif config.record.folder:
        if config.record.public_key:
            recipients(config.record.public_key)
        plan.specs.append(replace(fusion, kind="record", name=RECORD))
    return plan


def plan_stream(plan: Plan, stream: Stream, config: Config, run_dir: Path, clock: SystemClock) -> frozenset[str]:
    """Add a stream's nodes to a plan. Returns the modalities that fusion has to expect.

    Raises RunError, ModelError or SourceError.
    """
    node = partial(NodeSpec, config=config, run_dir=str(run_dir), clock_offset_ns=clock.offset_ns)
    modalities: set[str] = set()
    for kind, (source, media) in _captures(stream, config, plan.notes).items():
        name = node_name(kind, stream.name)
        plan.specs.append(node("capture", name, stream.name, source=source, media=media, tracks=stream.tracks or ""))
        modalities |= media
        if "audio" in media:
            sound, shared = name, _shares(config, kind, source)
    if "video" in modalities:
        models.face_detector(config.video)
    if "audio" in modalities:
        models.need("silero-vad", config.speech.vad_model)
        name = node_name("speech", stream.name)
        plan.specs.append(node("speech", name, stream.name, inputs=(sound,), host=sound if shared else ""))
        modalities.add("speech")
    return frozenset(modalities)


def _shares(config: Config, kind: NodeKind, source: SourceSpec) -> bool:
    """Whether speech shares the process that captures its sound. Not at fast pace, where sound has to wait for speech;
    and not with a connection, which would be lost whenever a recogniser crashes."""
    if config.speech.process == "own" or config.pace == "fast" or kind != "audio":
        return False
    return config.speech.recognizer != "external" and (not source.is_live or source.kind == "microphone")


def _captures(stream: Stream, config: Config, notes: list[str]) -> dict[NodeKind, tuple[SourceSpec, frozenset[Medium]]]:
    """A stream's capture nodes by kind: their source and media. Two processes read the sound and picture of a file, or
    of two sources; a network source is opened once, so one process reads both."""
    captures: dict[NodeKind, tuple[SourceSpec, frozenset[Medium]]] = {}
    for medium, source in stream.sources:
        if source.kind == "zmq":
            from emostream.stream.sources.external import check_endpoint

            check_endpoint(source.location, str(source))
        source = of_this_process(source)
        if source.kind == "file" and not is_regular(file_path(source)):
            both = stream.source is not None  # a pipe is opened once
            captures["capture" if both else medium] = (source, source.media if both else frozenset({medium}))
        elif stream.source is not None and source.kind in ("url", "zmq"):
            captures["capture"] = (source, source.media)
        elif source.is_live or medium in file_tracks(source, config.record.identity):
            captures[medium] = (source, frozenset({medium}))
        else:
            notes.append(f"{stream.name}: {source} has no {medium} track; going on without {medium}")
    if not captures:
        raise RunError(f"{stream.name}: {stream.source or stream.audio or stream.video} has neither sound nor picture")
    return captures


def _check_keys(bus: Bus, notes: list[str]) -> Mapping[zmq.SocketOption, Any]:
    """Options of the public socket. Raises ConfigError if there are no keys, or they cannot be used."""
    keys = Keys(bus.keys)
    server = keys.need_server(bus.emotion)
    if not keys.allowed():
        notes.append(f"{bus.emotion}: nobody may listen yet; type {keys.command('allow PUBLIC_KEY NAME')}")
    return closed(server)


def _check_certificate(page: Page, notes: list[str]) -> None:
    """Raises ConfigError if the page's certificate cannot be used."""
    from emostream.stream.page.tls import Certificate

    if Certificate(page.certificate, page.key).is_open():
        path = page.key or page.certificate
        notes.append(f"{path}: every user of this machine can read the page's key; type chmod o= {path}")


def _try_endpoint(endpoint: str, options: Mapping[zmq.SocketOption, Any]) -> None:
    """Bind and unbind, so that a port in use is noticed before anything starts. Raises BusError.

    ``options``: those of the real socket. A client that already waits with a key would give up for good if it met a
    socket without keys."""
    with zmq.Context() as context, closing(bind_xpub(context, endpoint, options)) as socket:
        socket.unbind(socket.getsockopt_string(zmq.LAST_ENDPOINT))
