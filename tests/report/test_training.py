"""Cost and curves are drawn of every configuration that has them."""

from lorascope.report.training import cost_section, curves_section


def test_scores_are_held_against_three_costs(study_of, written, findings_of):
    section = cost_section(findings_of(written(study_of())))
    assert section is not None
    figures = section.blocks[0].figures
    assert [figure.title for figure in figures] == [
        "Accuracy against parameters",
        "Accuracy against time",
        "Accuracy against memory",
    ]
    assert all(figure.picture.count('class="dot') == 3 for figure in figures)
    cheapest = [figure.caption.partition(" (")[0].removeprefix("On the front: ") for figure in figures]
    # 504 and 516 MiB are no more apart than a short measurement tells.
    assert cheapest == ["r 4 · query + value", "r 4 · query + value", "r 16 · all-linear"]


def test_the_best_and_the_baseline_stand_out_among_the_curves(study_of, written, findings_of):
    section = curves_section(findings_of(written(study_of())))
    assert section is not None
    legend = [meaning for _, meaning in section.blocks[0].figures[0].legend]
    assert legend == ["best: r 16 · all-linear", "baseline: r 4 · query + value", "others", "loss on validation"]
    small = section.blocks[1].figures
    assert [figure.title for figure in small] == ["r 16 · all-linear", "r 4 · query + value", "r 8 · query + value"]
    assert 'id="all-curves"' in small[0].picture
    assert all('href="#all-curves"' in figure.picture for figure in small[1:])


def test_a_study_that_has_not_begun_has_no_curves(study_of, written, findings_of):
    found = findings_of(written(study_of(), ended={number: {"status": "planned"} for number in range(9)}))
    assert curves_section(found) is None
    assert cost_section(found) is None


def test_a_mean_of_the_seeds_that_are_left_is_not_on_the_front(study_of, written, findings_of):
    ended = {number: {"status": "diverged"} for number in (7, 8)}
    found = findings_of(written(study_of(), ended=ended))
    (lost,) = [one for one in found.ranked if one.num_done < 3]
    assert found.ranked[-1] is lost
    assert all(lost.scores["accuracy"].mean > one.scores["accuracy"].mean for one in found.ranked[:-1])
    section = cost_section(found)
    assert section is not None
    for figure in section.blocks[0].figures:
        on_front, _, rest = figure.caption.partition(". ")
        assert lost.label not in on_front
        assert rest == f"Not held against the others, as seeds of it have no score: {lost.label}."
        assert figure.picture.count("dot hollow short") == 1
        assert "without every seed" in [meaning for _, meaning in figure.legend]


def test_where_no_configuration_has_every_seed_there_is_no_front(study_of, written, findings_of):
    section = cost_section(findings_of(written(study_of(), ended={number: {"status": "failed"} for number in (0, 3, 6)})))
    assert section is not None
    for figure in section.blocks[0].figures:
        assert figure.caption.startswith("No configuration finished every seed, so there is no Pareto front.")
        assert 'class="front"' not in figure.picture


def test_measured_costs_are_said_to_have_no_interval(study_of, written, findings_of):
    section = cost_section(findings_of(written(study_of())))
    assert section is not None
    assert "Time and memory are one short measurement of each configuration and have no interval" in section.lead
