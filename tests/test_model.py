"""The fusion model: the default variant's rules about lengths, and the paper's network against torch's own layers."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from emostream.stream.features import voice
from emostream.train.bundle import face
from emostream.train.model import (
    ATTENTION,
    DIMS,
    MODALITIES,
    Attention,
    build,
    load_authors_weights,
    reverse,
    statistics,
)
from tests.nets import SMALL, inputs, small

torch.set_num_threads(1)
ROWS = {"audio": 10, "video": 8, "text": 5}
SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(MODALITIES, n)]


# --- the default variant ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("pooling", [True, False])
def test_padding_and_other_clips_of_a_batch_change_nothing(attention, pooling):
    model = small(attention, pooling=pooling)
    lengths = {"audio": [13, 1, 0, 9], "video": [5, 0, 3, 1], "text": [2, 4, 0, 1]}
    together = inputs(lengths, padding=3)
    logits = model(**together)
    for i in range(4):
        alone = {}
        for m in MODALITIES:
            n = lengths[m][i]
            alone[m], alone[f"{m}_len"] = together[m][i : i + 1, : max(1, n)], torch.tensor([n])
        assert torch.allclose(model(**alone), logits[i : i + 1], atol=1e-5)
    for m in MODALITIES:  # any values beyond a length, even NaN
        for i, n in enumerate(lengths[m]):
            together[m][i, n:] = float("nan")
    assert torch.allclose(model(**together), logits, atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("only", MODALITIES)
def test_a_single_modality_is_finite_and_absent_ones_are_left_out(attention, only):
    model = small(attention)
    arguments = inputs({m: [6, 3] if m == only else [0, 0] for m in MODALITIES})
    logits = model(**arguments)
    assert torch.isfinite(logits).all()
    assert torch.allclose(model(**{only: arguments[only], f"{only}_len": arguments[f"{only}_len"]}), logits, atol=1e-6)
    zeros = dict(arguments)
    for m in MODALITIES:
        if m != only:  # rows of zeros that count as present are not the same as absence
            zeros[m], zeros[f"{m}_len"] = torch.zeros(2, 4, SMALL[m]), torch.tensor([4, 4])
    assert not torch.allclose(model(**zeros), logits, atol=1e-3)


@pytest.mark.parametrize("attention", ATTENTION)
def test_gradient_is_finite_and_reaches_every_parameter(attention):
    model = small(attention, dropout=0.0).train()
    lengths = {"audio": [41, 0, 5], "video": [4, 2, 0], "text": [3, 0, 2]}  # more than one row for each GRU
    torch.nn.functional.cross_entropy(model(**inputs(lengths)), torch.tensor([0, 3, 6])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_gradient_is_finite_with_one_modality():
    model = small().train()
    model(**inputs({"audio": [4], "video": [0], "text": [0]})).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.slow
def test_attention_matches_torchs_own():
    torch.manual_seed(0)
    ours, theirs = Attention(12, 3, 0.0).eval(), torch.nn.MultiheadAttention(12, 3, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.query_key_value.weight)
        theirs.in_proj_bias.copy_(ours.query_key_value.bias)
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    target, source, length = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.tensor([7, 3])
    masked = torch.arange(7)[None] >= length[:, None]
    want = ours.norm(target + theirs(target, source, source, key_padding_mask=masked)[0])
    assert torch.allclose(ours(target, source, (~masked).float()), want, atol=1e-5)
    want = ours.norm(source + theirs(source, source, source, key_padding_mask=masked)[0])
    assert torch.allclose(ours(source, source, (~masked).float()), want, atol=1e-5)


def test_two_grus_with_reversal_match_a_bidirectional_one_on_unpadded_input():
    encoder = small().encoders["text"]
    both = torch.nn.GRU(4, 12, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for name, value in encoder.ahead.named_parameters():
            getattr(both, name).copy_(value)
        for name, value in encoder.back.named_parameters():
            getattr(both, f"{name}_reverse").copy_(value)
    x = torch.randn(1, 6, 4)
    padded = torch.cat([x, torch.full((1, 5, 4), 9.0)], dim=1)
    states, _ = encoder(padded, torch.tensor([6]))
    assert torch.allclose(states[:, :6], both(x)[0], atol=1e-6)


def test_reverse_and_statistics():
    x = torch.arange(5.0)[None, :, None]
    assert reverse(x, torch.tensor([3]))[0, :, 0].tolist() == [2, 1, 0, 3, 4]
    assert reverse(x, torch.tensor([0]))[0, :, 0].tolist() == [0, 1, 2, 3, 4]
    vectors = torch.tensor([[[1.0], [3.0], [100.0]]])
    two = statistics(vectors, torch.tensor([[True, True, False]]))
    assert two[0].tolist() == pytest.approx([2.0, 1.0], abs=0.01)
    assert statistics(vectors, torch.tensor([[True, False, False]]))[0].tolist() == [1.0, 0.0]


def test_build_refuses_unknown_names_and_stays_small():
    with pytest.raises(ValueError, match="self, cross, both, none"):
        build(attention="diagonal")
    with pytest.raises(ValueError, match="audio, video, text"):
        build(modalities=("smell",))
    assert sum(p.numel() for p in build(attention="both").parameters()) < 1_000_000
    assert sum(p.numel() for p in face.FaceNet().parameters()) < 1_000_000
    assert (DIMS["audio"], DIMS["video"]) == (voice.DIM, face.DIM)


# --- the paper's network -----------------------------------------------------------------------------------------


class Reference(nn.Module):
    """The published network at its full size, made of torch's own layers under the authors' names."""

    def __init__(self, attention):
        super().__init__()
        self.text_encoder = nn.GRU(300, 60, batch_first=True, bidirectional=True)
        self.video_conv, self.audio_conv = nn.Conv1d(32, 25, 1), nn.Conv1d(1000, 500, 1)
        self.video_encoder = nn.GRU(2048, 60, batch_first=True, bidirectional=True)
        self.audio_encoder = nn.GRU(120, 60, batch_first=True, bidirectional=True)
        self.order = {"self": ["t", "v", "a"], "cross": ["a_t", "v_t", "t_v", "a_v", "t_a", "v_a"]}[attention]
        for name in self.order:
            setattr(self, f"mha_{name}", nn.MultiheadAttention(120, 6, dropout=0.1, batch_first=True))
        self.concat_linear, self.classifier = nn.Linear(240, 60), nn.Linear(60, 7)

    def forward(self, audio, video, text):
        dropped = nn.functional.dropout(text, 0.25, self.training)
        states = {
            "t": self.text_encoder(dropped)[0],
            "v": self.video_encoder(self.video_conv(video))[0],
            "a": self.audio_encoder(self.audio_conv(audio))[0],
        }
        vectors = []
        for name in self.order:
            source, target = states[name[0]], states[name[-1]]
            vectors.append(getattr(self, f"mha_{name}")(target, source, source)[0].mean(dim=1))
        std, mean = torch.std_mean(torch.stack(vectors), dim=0, unbiased=True)
        return self.classifier(self.concat_linear(torch.hstack([std, mean])))


def arrays(rows, dims, batch=2):
    random = torch.Generator().manual_seed(1)
    return {m: torch.randn(batch, rows[m], dims[m], generator=random) for m in rows}


def full():
    return arrays({"audio": 1000, "video": 32, "text": 128}, {"audio": 120, "video": 2048, "text": 300})


def paper(attention="self", modalities=MODALITIES, **options):
    """The paper's network, small, and inputs for it."""
    torch.manual_seed(0)
    model = build("paper", attention, modalities, dims=SMALL, rows=ROWS, hidden=6, heads=3, **options).eval()
    return model, {m: x for m, x in arrays(ROWS, SMALL).items() if m in modalities}


def watch(model, given):
    """Run the model; returns, by layer name, the first input and the output (the first, if there are several)."""
    seen = {}

    def hook(name):
        return lambda layer, args, out: seen.update({name: (args[0], out[0] if isinstance(out, tuple) else out)})

    handles = [layer.register_forward_hook(hook(name)) for name, layer in model.named_children()]
    model(**given)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["self", "cross"])
def test_the_authors_weights_give_the_authors_logits(attention):
    torch.manual_seed(0)
    theirs, given = Reference(attention).eval(), full()
    with torch.no_grad():  # untrained, it would give nearly equal logits
        theirs.concat_linear.weight *= 20
        theirs.classifier.weight *= 20
    ours = build("paper", attention).eval()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    load_authors_weights(ours, copy.deepcopy(theirs).double().state_dict())  # they train in double precision
    want = theirs(**given)
    assert want.std(dim=0).min() > 1e-3 and want.std(dim=1).min() > 0.1  # clips and labels do differ
    assert torch.allclose(ours(**given), want, rtol=0, atol=1e-5)
    with torch.inference_mode():  # there torch takes another way through attention
        assert torch.allclose(ours(**given), want, rtol=0, atol=1e-5)
    again = Reference(attention)
    again.load_state_dict(ours.state_dict())
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())


def test_the_papers_sizes():
    model = build("paper", "both")
    assert model.video_conv.weight.shape == (25, 32, 1)
    assert model.audio_conv.weight.shape == (500, 1000, 1)
    assert not hasattr(model, "text_conv")
    assert model.concat_linear.weight.shape == (60, 240) and model.classifier.weight.shape == (7, 60)
    rows, dims = {"audio": 301, "video": 20, "text": 40}, {"audio": 120, "video": 128, "text": 48}
    other = build("paper", rows=rows, dims=dims, labels=4).eval()
    assert (other.audio_conv.out_channels, other.video_conv.out_channels) == (150, 15)  # half, and 25 of 32
    assert other(**arrays(rows, dims)).shape == (2, 4)
    assert build("paper", rows={"audio": 1, "video": 1}).video_conv.out_channels == 1


@pytest.mark.parametrize("modalities", SUBSETS)
@pytest.mark.parametrize("attention", ATTENTION)
def test_the_paper_pools_its_vectors_in_order(attention, modalities):
    selves, crosses = ["t", "v", "a"], ["a_t", "v_t", "t_v", "a_v", "t_a", "v_a"]
    order = {"self": selves, "cross": crosses, "both": selves + crosses, "none": []}[attention]
    initials = {m[0] for m in modalities}
    order = [name for name in order if initials.issuperset(name.split("_"))]
    if attention == "cross" and len(modalities) == 1:
        with pytest.raises(ValueError, match=f"{modalities[0]} is alone"):
            paper(attention, modalities)
        return
    for pooling in (True, False):
        model, given = paper(attention, modalities[::-1], pooling=pooling)  # the order given does not matter
        seen = watch(model, given)
        assert {name for name in seen if name.startswith("mha")} == {f"mha_{name}" for name in order}
        if attention == "none":
            layers = [f"{m}_encoder" for m in ("text", "video", "audio") if m in modalities]
        else:
            layers = [f"mha_{name}" for name in order]
        vectors = [seen[layer][1].mean(1).detach().numpy() for layer in layers]
        want = np.concatenate(vectors, axis=1)
        if pooling and len(vectors) > 1:  # the unbiased deviation first
            want = np.concatenate([np.std(vectors, axis=0, ddof=1), np.mean(vectors, axis=0)], axis=1)
        assert np.allclose(seen["concat_linear"][0].detach().numpy(), want, atol=1e-6)
        hidden = seen["concat_linear"][1]
        assert torch.equal(seen["classifier"][0], hidden) and (hidden < 0).any()  # no activation between


@pytest.mark.parametrize("modalities", SUBSETS)
@pytest.mark.parametrize("attention", ["self", "both", "none"])
def test_the_papers_gradient_is_finite_and_reaches_every_parameter(attention, modalities):
    model, given = paper(attention, modalities)
    nn.functional.cross_entropy(model(**given), torch.tensor([0, 3])).backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.slow
def test_the_papers_dropout():
    model, given = paper("both")
    given["text"] = torch.ones(2, 5, 4) + torch.arange(4)
    still = model(**given)
    assert torch.equal(model(**given), still)
    model.train()
    seen = [watch(model, given) for _ in range(100)]
    text = torch.stack([one["text_encoder"][0] for one in seen])  # (100, 2, 5, 4)
    assert ((text == 0) | torch.isclose(text, given["text"] / 0.75)).all()
    assert (text == 0).float().mean() == pytest.approx(0.25, abs=0.03)
    for m in ("audio", "video"):  # nothing but the text is dropped on its way in
        assert torch.equal(seen[0][f"{m}_conv"][0], given[m])
        assert torch.equal(seen[0][f"{m}_encoder"][0], seen[0][f"{m}_conv"][1])
        assert torch.equal(seen[0][f"{m}_encoder"][1], seen[1][f"{m}_encoder"][1])
    attentions = [layer for layer in model.children() if isinstance(layer, nn.MultiheadAttention)]
    assert [layer.dropout for layer in attentions] == [0.1] * 9
    assert not torch.equal(seen[0]["mha_a"][1], seen[1]["mha_a"][1])
    model.text_dropout.p = 0.0
    for layer in attentions:
        layer.dropout = 0.0
    assert torch.allclose(model(**given), still, atol=1e-6)  # no other dropout is active


def test_the_paper_ignores_lengths_and_modalities_that_it_lacks():
    model, given = paper("cross", ("audio", "text"))
    lengths = {f"{m}_len": torch.tensor([1, 3]) for m in MODALITIES}
    want = model(**given)
    assert torch.equal(model(**given, **lengths), want)
    assert torch.equal(model(**given, video=None, audio_len=None), want)
    cut = {**given, "audio": given["audio"].clone()}
    cut["audio"][:, 3:] = 0  # padding counts like any other row
    assert not torch.allclose(model(**cut, **lengths), want, atol=1e-4)


def test_the_paper_refuses_what_is_missing_or_of_another_shape():
    model, given = paper()
    with pytest.raises(ValueError, match="video is not given"):
        model(audio=given["audio"], text=given["text"])
    for wrong in (given["video"][:, :7], given["video"][:, :, :5], given["video"][0]):
        with pytest.raises(ValueError, match=r"video is .*, not \(batch, 8, 6\)"):
            model(**{**given, "video": wrong})
    with pytest.raises(ValueError, match="video has 1"):
        model(**{**given, "video": given["video"][:1]})


def test_weights_of_another_network_are_refused_with_every_name():
    model, _ = paper("cross")
    before = copy.deepcopy(model.state_dict())
    state = {name: value + 1 for name, value in before.items()}
    del state["mha_a_t.in_proj_bias"], state["classifier.bias"]
    state["mha_t.in_proj_bias"] = torch.zeros(36)
    state["audio_encoder.weight_ih_l0"] = torch.zeros(18, 9)
    with pytest.raises(ValueError) as error:
        load_authors_weights(model, state)
    assert str(error.value).splitlines()[1:] == [
        "  missing: mha_a_t.in_proj_bias",
        "  missing: classifier.bias",
        "  unexpected: mha_t.in_proj_bias",
        "  wrong shape: audio_encoder.weight_ih_l0 is (18, 9), not (18, 10)",
    ]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_build_refuses_options_that_a_variant_lacks():
    with pytest.raises(ValueError, match="default, paper"):
        build("newspaper")
    with pytest.raises(ValueError, match="any number of rows"):
        build(rows={"audio": 100})
    with pytest.raises(ValueError, match="dropout rates are fixed"):
        build("paper", dropout=0.5)
    for variant in ("default", "paper"):
        with pytest.raises(ValueError, match="7 heads"):
            build(variant, heads=7)
