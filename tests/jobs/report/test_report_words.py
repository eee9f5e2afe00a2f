import math

import pytest

from guard import Incident
from jobs.observability.event_line import event
from jobs.report import words
from jobs.report.advice import advice
from jobs.report.formats import accuracy, duration, listing, number, percent, times
from jobs.run_dir.incidents import join_outcomes
from tests.jobs.report.report_fixture import nan_incident, rollback_incident

RECOVERED = {"type": "outcome", "incident": 2, "outcome": "recovered", "step": 177, "steps": 52}


def story(row, *outcomes):
    (incident,), _ = join_outcomes([row, *outcomes])
    return " ".join(words.story(incident))


def test_rollback_is_described_from_cause_to_outcome():
    assert story(rollback_incident(2), RECOVERED) == (
        "At step 151 the loss rose to 7.05, 17 times its baseline of 0.41 (score 33). "
        "The gradient of layer4.1.conv2 grew most (71 % of the norm, 35 times its baseline). "
        "Rank 1 stood out (97 % of the gradient, loss 13.7). "
        "The batch held samples 1000–1063. "
        "The guard rolled back 26 steps to step 125, halved the learning rate, "
        "raised the weight decay to 2 times its value, "
        "pulled the weights toward the healthy ones (anchor L2 0.01) until step 200 "
        "and moved on past the bad data. "
        "Recovered in 52 steps."
    )


def test_nan_names_the_rank_and_states_that_nothing_was_changed():
    assert story(nan_incident(1)) == (
        "At step 69 the loss was not a number (NaN). "
        "The gradients of 8 or more layers were not finite, conv1 among them. "
        "Only rank 1 had non-finite numbers; the others were healthy. "
        "The batch held samples 1000–1063. "
        "The guard skipped the step: weights, optimizer and statistics are untouched."
    )


def test_a_rate_that_is_tried_is_no_spike_of_a_loss_that_is_as_usual():
    changes = {"by_rate": True, "reason": "the first steps end at 2.7: from the start with 0.1 of 0.3"}
    recovery = {"lr_scale": 1 / 3, "rate_factor": 1 / 3, "data": "replay"}
    row = {**rollback_incident(2), **changes, "value": 2.7, "recovery": recovery}
    assert story(row, RECOVERED) == (
        "The first steps end at 2.7: from the start with 0.1 of 0.3. "
        "The guard rolled back 26 steps to step 125, keeps the learning rate at 33 % of its schedule "
        "and replayed the same data. Recovered in 52 steps."
    )
    incident = Incident.from_row(row)
    assert words.title(incident) == "Learning rate changed at step 151"
    line = f"step 151: {changes['reason']}; rolled back 26 steps"
    assert event(incident) == ("warning", line)
    assert advice(incident).startswith("Nothing to do: two learning rates were compared")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"verdict": "suspect"},
            "At step 151 the loss looked suspicious at 7.05, 17 times its baseline of 0.41 (score 33).",
        ),
        (
            {"verdict": "drift"},
            "At step 151 the loss had drifted to 7.05, 17 times its baseline of 0.41 (score 33).",
        ),
        (
            {"verdict": "vanishing", "signal": "grad_norm", "value": 1e-9, "baseline": 0.9},
            "At step 151 the gradient norm all but vanished: 1e-9, against its baseline of 0.9 (score 33).",
        ),
        ({"verdict": "warning"}, "At step 151 the loss was climbing (score 33)."),
        ({"verdict": "nonfinite", "value": math.inf}, "At step 151 the loss was infinite."),
        ({"verdict": "nonfinite", "value": None}, "At step 151 the loss was not finite."),
        (
            {"signal": "update_norm"},
            "At step 151 the update norm rose to 7.05, 17 times its baseline of 0.41 (score 33).",
        ),
        ({"baseline": -0.4}, "At step 151 the loss rose to 7.05, against its baseline of -0.4 (score 33)."),
        ({"baseline": None, "score": math.inf}, "At step 151 the loss rose to 7.05."),
        ({"step": None}, "The loss rose to 7.05, 17 times its baseline of 0.41 (score 33)."),
        (
            {"verdict": "new"},
            "At step 151 the loss was reported as “new” at 7.05, 17 times its baseline of 0.41 (score 33).",
        ),
    ],
)
def test_every_verdict_has_its_sentence(changes, sentence):
    assert words.seen(Incident.from_row({**rollback_incident(1), **changes})) == sentence


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"action": "clipped"}, "The guard clipped the gradient and applied the step."),
        ({"action": "applied"}, "The guard watched and applied the step."),
        (
            {"action": "applied", "would": "rollback"},
            "The guard only watched; it would have rolled back the run.",
        ),
        ({"action": "halted"}, "The guard halted the run: its budget was spent."),
        ({"action": "halted", "reason": "no state"}, "The guard halted the run: no state."),
        ({"recovery": None}, "The guard rolled back 26 steps to step 125."),
        ({"recovery": None, "steps_lost": 1}, "The guard rolled back 1 step to step 125."),
        ({"recovery": None, "steps_lost": 0}, "The guard rolled back to step 125."),
        (
            {"recovery": {"data": "replay"}},
            "The guard rolled back 26 steps to step 125 and replayed the same data.",
        ),
        (
            {"recovery": None, "verdict": "nonfinite", "reason": "3 steps in a row"},
            "Skipping did not help: 3 steps in a row. The guard rolled back 26 steps to step 125.",
        ),
        ({"action": "unheard of"}, ""),
    ],
)
def test_every_action_has_its_sentence(changes, sentence):
    assert words.action(Incident.from_row({**rollback_incident(1), **changes})) == sentence


def test_a_warning_names_what_the_loss_did_since_the_rate_rose():
    reason = "the loss has climbed from 0.41 to 0.5 since the learning rate passed 0.1: it is 0.16 now"
    warning = Incident.from_row({**rollback_incident(1), "verdict": "warning", "reason": reason})
    assert words.title(warning) == "Climbing loss at step 151"
    assert words.corrected(warning) == f"T{reason[1:]}."


@pytest.mark.parametrize(
    ("outcome", "steps", "sentence", "badge"),
    [
        ("recovered", 1, "Recovered in 1 step.", "Recovered"),
        ("recovered", None, "Recovered.", "Recovered"),
        ("recurred", 9, "The anomaly recurred after 9 steps.", "Recurred"),
        ("halted", 9, "The run was halted after 9 steps.", "Run halted"),
        ("halted", None, "The run was halted soon after.", "Run halted"),
    ],
)
def test_every_outcome_has_its_sentence_and_badge(outcome, steps, sentence, badge):
    row = {"type": "outcome", "incident": 1, "outcome": outcome, "steps": steps}
    (incident,), _ = join_outcomes([rollback_incident(1), row])
    assert words.outcome(incident) == sentence
    assert words.badge(incident) == badge


@pytest.mark.parametrize(
    ("changes", "sentence", "badge"),
    [
        ({}, "The guard watched and applied the step.", "Watched only"),
        ({"faulty_ranks": [1]}, "The guard applied the step with what was good.", "Hardware fault"),
        (
            {"dropped_micro_batches": 1},
            "The guard applied the step with what was good.",
            "Micro-batch dropped",
        ),
        (
            {"excluded_ranks": [1]},
            "The guard applied the step without it",
            "Rank excluded",
        ),
    ],
)
def test_a_step_that_was_corrected_is_not_described_as_only_watched(changes, sentence, badge):
    incident = Incident.from_row({**nan_incident(1), "action": "applied", **changes})
    assert words.action(incident).startswith(sentence)
    assert words.badge(incident) == badge


def test_a_missing_outcome_is_stated_of_a_rollback_and_not_of_a_skip():
    assert story(rollback_incident(1)).endswith("No outcome was recorded after it.")
    assert words.outcome(Incident.from_row(nan_incident(1))) == ""


def test_ranks_are_named_only_where_they_stand_out():
    row = rollback_incident(1)
    even = [{**rank, "share": 0.5} for rank in row["ranks"]]
    bad = [{**rank, "nonfinite": True} for rank in row["ranks"]]
    assert words.ranks(Incident.from_row({**row, "ranks": even})) == "No rank stood out."
    assert words.ranks(Incident.from_row({**row, "ranks": bad})) == "All 2 ranks had non-finite numbers."
    assert words.ranks(Incident.from_row({**row, "ranks": even[:1]})) == ""
    by_loss = [{**rank, "local_norm": None} for rank in row["ranks"]]
    assert (
        words.ranks(Incident.from_row({**row, "ranks": by_loss}))
        == "Rank 1 stood out (97 % of the loss, loss 13.7)."
    )


def test_few_nonfinite_layers_are_all_named():
    row, layer = rollback_incident(1), {"name": "fc.weight", "norm": math.nan}
    others = [{"name": "conv1.weight", "norm": 1.0}]
    one = Incident.from_row({**row, "layers": [layer, *others]})
    two = Incident.from_row({**row, "layers": [layer, {**layer, "name": "fc.bias"}, *others]})
    assert words.layers(one) == "The gradient of fc was not finite."
    assert words.layers(two) == "The gradients of fc and fc (bias) were not finite."


def test_layer_without_history_is_the_largest():
    row = {
        **rollback_incident(1),
        "layers": [{"name": "module.fc.weight", "norm": 2.0, "share": 0.7, "growth": None}],
    }
    assert words.layers(Incident.from_row(row)) == "The gradient of fc was the largest (70 % of the norm)."


def test_layers_without_a_name_or_a_past_are_described():
    layer = {"name": "0.weight", "norm": 2.0, "share": 0.7, "growth": 3e11}
    said = words.layers(Incident.from_row({**rollback_incident(1), "layers": [layer]}))
    assert said == "The gradient of layer 0 grew most (70 % of the norm, up from almost nothing)."


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("module.layer4.1.conv2.weight", "layer4.1.conv2"),
        ("_orig_mod.fc.bias", "fc (bias)"),
        ("pos\nembed", "pos embed"),
        ("logit_scale", "logit_scale"),
    ],
)
def test_layer_names_are_shown_without_wrapper_prefixes(name, shown):
    assert words.layer_name(name) == shown


def test_titles_name_signal_and_step():
    assert words.title(Incident.from_row(rollback_incident(1))) == "Loss spike at step 151"
    assert words.title(Incident.from_row(nan_incident(1))) == "Non-finite loss at step 69"
    assert words.title(Incident.from_row({})) == "Signal"


def test_an_incident_of_which_nothing_is_known_still_has_a_story():
    assert words.story(Incident.from_row({})) == ["The signal stood out."]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.41234, "0.412"),
        (999.7, "1,000"),
        (1204.0, "1,204"),
        (0.0, "0"),
        (3.14159e-7, "3.14e-7"),
        (2e9, "2e9"),
        (-0.5, "-0.5"),
        (math.nan, "NaN"),
        (-math.inf, "minus infinite"),
        (None, "unknown"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_shares_never_round_to_all_or_nothing():
    assert [percent(share) for share in (0.0, 1e-6, 0.0119, 0.71, 0.9999, 1.0, None, math.nan)] == [
        "0 %",
        "<0.01 %",
        "1.2 %",
        "71 %",
        ">99 %",
        "100 %",
        "unknown",
        "unknown",
    ]
    assert accuracy(0.8806) == "88.1 %"


def test_durations_have_two_units():
    assert [duration(seconds) for seconds in (0.84, 9.96, 181.2, 7500, 360_000, 3600, None, math.nan)] == [
        "0.8 s",
        "10 s",
        "3 min 1 s",
        "2 h 5 min",
        "4 d 4 h",
        "1 h",
        "unknown",
        "unknown",
    ]


def test_growth_and_lists():
    assert [times(ratio) for ratio in (1.25, 8.13, 35.2, 1234.0)] == [
        "1.2 times",
        "8.1 times",
        "35 times",
        "1,200 times",
    ]
    assert [listing(items) for items in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"faulty_ranks": [1]}, "another result on rank 1: a hardware fault"),
        ({"faulty_ranks": [0, 2]}, "another result on rank 0 and 2: a hardware fault"),
        ({"faulty_ranks": [-1]}, "on an unidentified rank: a hardware fault"),
        (
            {"excluded_ranks": [1]},
            "The data of rank 1 stayed bad: computed again without it, the batch was fine.",
        ),
        ({"dropped_micro_batches": 2, "verdict": "nonfinite"}, "2 micro-batches not finite: dropped."),
        (
            {"verdict": "vanishing", "reason": "no gradient in 100 steps: fc.weight"},
            "No gradient in 100 steps",
        ),
        ({"moved_first": {"signal": "update_norm", "attempt": 3}}, "The update norm had moved first."),
    ],
)
def test_what_was_corrected_is_described(changes, sentence):
    row = {"type": "incident", "signal": "loss", "verdict": "suspect", "action": "applied", "value": 3.0}
    assert sentence in story({**row, **changes})


def test_a_signal_that_moved_first_itself_is_not_named_twice():
    row = {"type": "incident", "signal": "loss", "verdict": "spike", "action": "skipped"}
    assert "moved first" not in story({**row, "moved_first": {"signal": "loss"}})
