"""The HTML page of runs, read and clicked in a real browser."""

import builtins
import json

import numpy as np
import pytest
from fake_world import fake_world
from headless_browser import Browser, chromium
from test_report import RISING, Shares, rows_where

from tsi.errors import ConfigurationError
from tsi.experiments.cli import main
from tsi.experiments.pages.kept_trees import trees_of
from tsi.experiments.pages.page import as_script_data, write_page
from tsi.experiments.pages.page_data import page_data
from tsi.experiments.pages.tree_data import OUTCOMES, tree_of
from tsi.experiments.plans.cell import Cell
from tsi.experiments.plans.plan import make_plan
from tsi.experiments.reports.paper_curves import published_curves
from tsi.experiments.scaling.scale import run_plan

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    "<!--<script>{{DATA}} \u2028 $& \\"
)


def make_tree(problem=3, selected="7", grades=None):
    return tree_of(
        "smc",
        4,
        0,
        problem,
        ancestors=np.array([[0, 1, 2, 3], [0, 1, 3, 3], [0, 1, 2, 3]]),
        step_texts=[["a", "b", "c"], ["a", "b", "c"], ["d", HOSTILE, "f"], ["d", "g"]],
        step_rewards=np.array([[0.2, 0.4, 0.9, 0.5]] * 3),
        answers=["7", "7", "8", None],
        log_weights=np.log([0.1, 0.2, 0.3, 0.4]),
        rewards=np.array([0.2, 0.4, 0.9, np.nan]),
        selected=selected,
        grades={"7": False, "8": True} if grades is None else grades,
    )


def make_data(name="results/x"):
    rows = rows_where(
        Shares(self_consistency=0.25, dvts=RISING, particle_filter=RISING, smc=RISING)
    )
    for cell, row in rows.items():
        row["prompt"] = f"problem {cell.problem} {HOSTILE}"
        row["settings"] = {"task": HOSTILE, "temperature": 0.4}
        if cell.problem == 5:
            row["selected"] = HOSTILE
    return page_data(name, rows, [make_tree()], published_curves("Llama-3.2-1B"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("plotly", reason="the page needs plotly")
    if chromium() is None:
        pytest.skip("no Chromium is installed")
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page([make_data(HOSTILE), make_data("second")], path)
    browser = Browser()
    browser.path = path
    yield browser
    browser.close()


@pytest.fixture
def opened(page):
    page.errors.clear()
    page.requests.clear()
    page.open(page.path)
    yield page
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [
        page.path.as_uri()
    ]
    assert page.run("window.hacked === undefined")


def test_curves_are_drawn_with_a_band_for_each_method(opened):
    traces = "document.querySelectorAll('#curve-figure .scatterlayer .trace').length"
    # Four methods have a band each, and three published curves stand behind.
    assert opened.run(traces) == 11
    points = "document.querySelectorAll('#curve-figure .points path').length"
    assert opened.run(points) == 12 + 8 + 8 + 6
    shown = "[...document.querySelectorAll('#curve-figure .legendtext')]"
    labels = opened.run(f"{shown}.map(e => e.textContent)")
    assert "DVTS, Llama-3.2-1B, published" in labels
    names = "[...document.querySelectorAll('#pass-figure .legendtext')]"
    expected = ["pass@k", "self-consistency"]
    assert opened.run(f"{names}.map(e => e.textContent)") == expected
    for figure in ("reliability-figure", "pass-figure"):
        assert opened.run(f"!!document.querySelector('#{figure} svg.main-svg')")


def test_a_curve_can_be_seen_by_another_unit_of_cost(opened):
    title = "document.querySelector('#curve-figure .xtitle').textContent"
    assert opened.run(title) == "rollouts N per problem"
    opened.run(
        "(() => { const s = document.querySelector('#curves select');"
        " s.value = 'flops'; s.dispatchEvent(new Event('change')); })()"
    )
    opened.wait_for(f"{title} === 'FLOPs per problem, of both models'")


def test_hovering_over_a_point_shows_its_accuracy_and_costs(opened):
    opened.run("document.querySelector('#curve-figure').scrollIntoView()")
    x, y = opened.run(
        "(() => { const all = document.querySelectorAll('#curve-figure .points path');"
        " const r = all[all.length - 1].getBoundingClientRect();"
        " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    opened.send("Input.dispatchMouseEvent", type="mouseMoved", x=x - 3, y=y)
    opened.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    hover = "document.querySelector('#curve-figure .hovertext')"
    opened.wait_for(f"{hover} !== null")
    text = opened.run(f"{hover}.textContent")
    assert "N = 4" in text
    assert "all tokens: 60" in text


def test_tables_say_what_the_statistics_say(opened):
    text = opened.run("document.querySelector('#paired table').textContent")
    assert "−50.0 ± 8.0" in text
    assert "comparisons of this table" in opened.run(
        "document.querySelector('#paired').textContent"
    )
    rates = opened.run("document.querySelector('#rates table').textContent")
    assert "25.0 to 75.0" in rates


def test_a_tree_opens_by_a_click_and_shows_the_texts_as_they_are(opened):
    opened.click("#problems tbody tr:nth-child(4)")
    opened.wait_for("document.querySelectorAll('#tree-place g.node').length === 8")
    detail = opened.run("document.querySelector('#problem-detail').textContent")
    assert f"problem 3 {HOSTILE}" in detail
    assert OUTCOMES["lost"] in detail
    opened.click("#tree-place g.node[data-node='4']")
    opened.wait_for("document.querySelector('#node-detail') !== null")
    text = opened.run("document.querySelector('#node-detail pre').textContent")
    assert text == HOSTILE
    assert opened.run("document.querySelectorAll('main script, main img').length") == 0


def test_a_wrong_grading_can_be_spotted_beside_the_right_answer(opened):
    opened.click("#problems tbody tr:nth-child(6)")
    opened.wait_for("document.querySelector('#problem-detail h3') !== null")
    detail = opened.run("document.querySelector('#problem-detail').textContent")
    assert "Problem 5" in detail
    assert HOSTILE in detail
    assert "No genealogy of this problem" in detail


def test_problems_are_found_by_what_happened_to_them(opened):
    lines = "document.querySelectorAll('#problems tbody tr.choice').length"
    assert opened.run(lines) == 40
    for value, number in (("differ", 20), ("wrong", 10), ("kept", 1)):
        opened.run(
            "(() => { const s = document.querySelectorAll('#problems select')[1];"
            f" s.value = '{value}'; s.dispatchEvent(new Event('change')); }})()"
        )
        assert opened.run(lines) == number, value


def test_runs_are_shown_one_at_a_time(opened):
    name = "document.querySelector('#page h1 + p').textContent"
    assert opened.run(name) == HOSTILE
    opened.run(
        "(() => { const s = document.querySelector('#page select');"
        " s.value = '1'; s.dispatchEvent(new Event('change')); })()"
    )
    assert opened.run(name) == "second"


def test_data_cannot_leave_its_element():
    text = as_script_data({"text": HOSTILE})
    assert "<" not in text
    assert json.loads(text) == {"text": HOSTILE}
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_script_data(np.nan)


@pytest.mark.parametrize(
    ("selected", "grades", "outcome"),
    [
        ("8", {"7": False, "8": True}, "right"),
        ("7", {"7": False, "8": True}, "lost"),
        ("7", {"7": False, "8": False}, "never"),
        ("7", {"7": False}, "unknown"),
        (None, {"7": False, "8": True}, "lost"),
    ],
)
def test_a_tree_says_what_became_of_the_right_answer(selected, grades, outcome):
    tree = make_tree(selected=selected, grades=grades)
    assert tree["outcome"] == OUTCOMES[outcome]
    assert json.loads(as_script_data(tree)) == tree
    leaf = next(node for node in tree["nodes"] if node["text"] == "g")
    assert leaf["ends"] == [
        {"answer": None, "right": None, "weight": 0.4, "reward": None}
    ]
    root = tree["nodes"][0]
    assert (root["size"], root["survivors"], root["weight"]) == (2, 2, 0.3)
    assert root["selected"] == (selected == "7")


def test_without_plotly_one_is_told_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=r"pip install -e '\.\[report\]'"):
        write_page([], tmp_path / "x.html")


def test_the_command_writes_the_page_and_the_tables_from_rows_alone(tmp_path, capsys):
    pytest.importorskip("plotly", reason="the page needs plotly")
    rows = rows_where(Shares(dvts=RISING, smc=RISING))
    lines = [
        json.dumps({**cell._asdict(), **row, "settings": {"task": "x"}}) + "\n"
        for cell, row in rows.items()
    ]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    assert main(["report", str(tmp_path), "--tables"]) == 0
    assert "report.html" in capsys.readouterr().out
    assert "# x: 40 problems" in (tmp_path / "table.md").read_text()
    page = (tmp_path / "report.html").read_text()
    assert page.rstrip().endswith("</html>")
    assert "{{" not in page.split('<main id="page">')[0]


@pytest.mark.parametrize("keep", ["all", "solutions", "none"])
def test_genealogies_come_from_what_was_kept(tmp_path, keep):
    plan = make_plan(("smc", "self_consistency"), (2, 8), 1)
    path = tmp_path / "rows.jsonl"
    rows = run_plan(plan, fake_world(6), path, progress=False, keep=keep)
    trees = trees_of(rows, path, 3)
    if keep == "none":
        assert trees == []
        return
    # Three problems, of each SMC's run and the pool of independent samples.
    assert len(trees) == 6
    chosen = {tree["problem"] for tree in trees}
    differ = {
        p
        for p in range(6)
        if len({rows[Cell(m, 8, 0, p)]["correct"] for m in plan.methods}) == 2
    }
    assert chosen <= differ or differ <= chosen
    for tree in trees:
        ends = [end for node in tree["nodes"] for end in node["ends"]]
        assert len(ends) == 8
        assert sum(end["weight"] for end in ends) == pytest.approx(1, abs=1e-4)
        assert max(node["step"] for node in tree["nodes"]) == (
            2 if keep == "all" else 0
        )
        row = rows[Cell("smc", 8, 0, tree["problem"])]
        if tree["method"] == "smc":
            assert tree["selected"] == row["selected"]
            assert (tree["outcome"] == OUTCOMES["right"]) == row["correct"]
    grades = {
        end["right"] for tree in trees for node in tree["nodes"] for end in node["ends"]
    }
    assert {True, False} <= grades
    assert trees_of(rows, path, 0) == []
