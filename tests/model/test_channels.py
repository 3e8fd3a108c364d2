"""Models for fields of fewer channels than they learnt."""

import pytest
import torch

from small import NAMES, SIZE
from sparsefield.errors import UserError
from sparsefield.model.checkpoint import build_model
from sparsefield.model.field import ClosedForm
from sparsefield.model.transfer import OUTPUTS, for_channels
from sparsefield.place import Observed


def checkpoint(name: str = "V2", channels: int = 3, **changes):
    """Of a model whose weights are all random, and which predicts the same for all channels."""
    torch.manual_seed(0)
    _, model_class, more = NAMES[name]
    arguments = {**SIZE, "prior": "fitted", **more, "channels": channels, **changes}
    model = model_class(**arguments)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    for layer, part in ((layer, part) for layer in OUTPUTS for part in ("weight", "bias")):
        if f"{layer}.{part}" in dict(model.named_parameters()):
            weight = model.get_parameter(f"{layer}.{part}")
            weight.data.copy_(weight[:1].expand_as(weight).clone())
    return {"model_class": model_class.__name__, "model_args": arguments,
            "weights": model.state_dict(), "step": 3}


def predicted(model, form, values, z, places):
    """At the queries: mean and sd of the start, and the velocity."""
    queries, coords = places
    theta = torch.tensor([0.4, 1.1])
    with torch.no_grad():
        state = model.encode(Observed(coords, values), queries, form=form)
        return state.mean, state.sd, model.velocity(z, theta, state)


@pytest.mark.parametrize(("name", "changes"), [
    ("V2", {}), ("V1", {}), ("V2", dict(flow_unet_width=0)), ("V2", dict(unet_width=0)),
    ("V2", dict(prior="none", neighbours=0)), ("V2", dict(num_frequencies=0)),
])
def test_one_channel_is_seen_as_shades_of_grey(name, changes):
    learnt = checkpoint(name, **changes)
    colours, one = build_model(learnt), build_model(for_channels(learnt, 1))
    torch.manual_seed(1)
    places = torch.rand(2, 30, 2), torch.rand(2, 12, 2)
    values, z = torch.rand(2, 12, 1) - 0.5, torch.randn(2, 30, 1)
    form = one.closed_form(Observed(places[1], values), places[0])
    features = form.features
    if features is not None:
        features = features[:, [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 5]]
    grey = ClosedForm(*(part.expand(-1, -1, 3) for part in form[:4]), features)
    of_one = predicted(one, form, values, z, places)
    of_grey = predicted(colours, grey, values.expand(-1, -1, 3), z.expand(-1, -1, 3), places)
    for single, triple in zip(of_one, of_grey, strict=True):
        assert single.std() > 0
        torch.testing.assert_close(single, triple.mean(dim=2, keepdim=True), rtol=1e-4, atol=1e-5)


def test_an_unknown_channel_is_the_mean_of_those_at_hand():
    learnt = checkpoint()
    two = for_channels(learnt, 2)
    assert build_model(two).channels == 2
    torch.manual_seed(1)
    name, values = "input_proj.0.weight", torch.randn(5, 2)
    as_colours = torch.cat([values, values.mean(dim=1, keepdim=True)], dim=1)
    rows = slice(128, 131)  # after the places
    expected = as_colours @ learnt["weights"][name][:, rows].T
    found = values @ two["weights"][name][:, 128:130].T
    torch.testing.assert_close(found, expected)


def test_more_channels_than_were_learnt_are_refused():
    with pytest.raises(UserError, match=r"1 channel\(s\), the data 3"):
        for_channels(checkpoint(channels=1), 3)
