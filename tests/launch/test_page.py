"""The page of a sweep: what it holds, that it needs no network, and that a browser shows, sorts and filters it."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch import page, report
from tests.launch.test_report import write_run

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
HOSTILE = "</script><script>document.title='broken'</script> & <b>é\u2028"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three settings with two seeds, one of which never becomes finite, with samples and a picture."""
    workdir = tmp_path_factory.mktemp("sweeps") / "a <sweep>"
    for balance, accuracy in (("none", 0.25), ("bias", 0.75), ("batch", 0.5)):
        for seed in (0, 1):
            losses = [9.0] * 3 + [2.0 - accuracy + seed / 10, float("nan") if balance == "batch" else 1.0]
            folder = workdir / f"{balance},seed={seed}"
            write_run(folder, {"accuracy": accuracy + seed / 100}, losses, seed=seed, model__moe__balance=balance)
            records = [
                {"step": 3, "kind": "rollout", "prompt": f"1+{n}=", "completion": HOSTILE, "rewards": {"accuracy": 0.5}}
                for n in range(30)
            ]
            records.append({"step": 5, "kind": "eval", "prompt": "2+2=", "completion": f"four {balance}", "score": 1.0})
            (folder / "samples.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (workdir / "none,seed=0" / "depth.png").write_bytes(PIXEL)
    assert report.main([str(workdir), "--metrics=eval/accuracy,loss"]) == 0
    return workdir


def held(workdir: Path) -> dict[str, Any]:
    """The data inside a page."""
    text = (workdir / "report.html").read_text()
    return json.loads(text.split('id="data">')[1].split("</script>")[0])


def test_the_page_holds_what_the_runs_hold(sweep: Path) -> None:
    data = held(sweep)
    assert data["title"] == "a <sweep>"
    assert len(data["groups"]) == 3
    by_label = {group["label"]: group for group in data["groups"]}
    assert by_label["balance=bias"]["cells"][0] == pytest.approx([0.755, 0.01 / 2**0.5])
    [best] = data["metrics"][0]["best"]
    assert data["groups"][best]["label"] == "balance=bias" and data["metrics"][0]["sign"] == 1
    assert data["metrics"][1]["sign"] == -1
    assert len(data["samples"]) == 6 * 31 and data["samples"][0]["completion"] == HOSTILE
    assert [picture["name"] for picture in data["pictures"]] == ["none,seed=0/depth.png"]
    assert base64.b64decode(data["pictures"][0]["src"].split(",")[1]) == PIXEL
    run = by_label["balance=bias"]["runs"][0]
    assert run["settings"]["model.moe.balance"] == "bias" and "model.depth" not in run["settings"]
    assert run["made"]["commit"] == "c"
    assert (
        page.run_data(replace(report.read_results(sweep)[0][0], settings={"data.stop": [], "log.every": 1}))["settings"]
        == {}
    )
    assert None in data["curves"]["loss"][data["groups"].index(by_label["balance=batch"])][1]


def test_the_page_needs_no_network_and_cannot_be_broken_by_text(sweep: Path) -> None:
    text = (sweep / "report.html").read_text()
    assert not re.search(r"(?:src|href|url|import)\s*[=(]\s*['\"]?(?:https?:)?//", text)
    assert text.count("</script>") == 2 and "<title>a &lt;sweep></title>" in text


def test_what_is_put_in_is_not_a_place_for_more(tmp_path: Path) -> None:
    """A folder named like a mark of the template, text that ends an element, and text that is no UTF-8."""
    folder = write_run(tmp_path / "__DATA__" / "a", {"accuracy": 1.0}, [1.0, 2.0], name="<img src=x onerror=alert(1)>")
    record = {
        "step": 1,
        "kind": "eval",
        "prompt": "`1|2`\n__TITLE__",
        "completion": "\ud800<!--</script>",
        "score": 1.0,
    }
    (folder / "samples.jsonl").write_text(json.dumps(record) + "\n")
    assert report.main([str(tmp_path / "__DATA__")]) == 0
    data, text = held(tmp_path / "__DATA__"), (tmp_path / "__DATA__" / "report.html").read_text()
    assert data["title"] == "__DATA__" and "<title>__DATA__</title>" in text and text.count("</script>") == 2
    assert "<img" not in text and data["groups"][0]["label"] == "<img src=x onerror=alert(1)>"
    told = data["samples"][0]
    assert (told["prompt"], told["completion"]) == (record["prompt"], "\N{REPLACEMENT CHARACTER}<!--</script>")


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    places = np.arange(10_000.0)
    found = page.thin(places, places * 2, places * 0)
    assert [len(part) for part in found] == [page.POINTS] * 3
    assert (found[0][0], found[0][-1], found[1][-1]) == (0, 9999, 19998)
    assert page.thin(places[:3], places[:3], places[:3])[0] == [0, 1, 2]


def test_pictures_that_do_not_fit_are_named(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "PICTURES", 10)
    (found,) = page.pictures(sweep / "none,seed=0", [])
    assert "left out" in found["name"] and "src" not in found


def test_a_single_run_has_a_page(sweep: Path) -> None:
    folder = sweep / "bias,seed=1"
    assert report.main([str(folder)]) == 0
    data = held(folder)
    assert [len(group["runs"]) for group in data["groups"]] == [1]
    assert data["groups"][0]["runs"][0]["settings"]["seed"] == 1
    (folder / "report.html").unlink()


def shown(workdir: Path, address: str) -> tuple[str, list[str]]:
    """What a browser makes of the page at `#address`, and what it complains of."""
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=3000"
    url = (workdir / "report.html").resolve().as_uri() + "#" + address
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={workdir.parent / 'browser'}", "--dump-dom", url]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout, [line for line in found.stderr.splitlines() if "CONSOLE" in line]


def column(dom: str, number: int) -> list[str]:
    """A column of the table as it is shown."""
    rows = dom.split('id="table">')[1].split("</table>")[0].split("<tr>")[2:]
    return [html.unescape(re.findall(r"<td[^>]*>(.*?)</td>", row)[number]) for row in rows]


@pytest.mark.more
@pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed (Debian: apt install chromium)")
def test_a_browser_shows_sorts_and_filters(sweep: Path) -> None:
    plain, complaints = shown(sweep, "")
    assert not complaints
    assert len(column(plain, 0)) == 3 and plain.count("<polyline") == 3 and plain.count('class="sample"') == 50
    assert 'class="best">0.755' in plain and "<title>a &lt;sweep&gt;</title>" in plain
    assert "186 of 186, 50 shown" in plain and "data:image/png;base64" in plain
    rising, complaints = shown(sweep, "sort=eval%2Faccuracy&metric=loss&kind=eval&text=four+b")
    assert not complaints
    assert column(rising, 0) == ["balance=none", "balance=batch", "balance=bias"]
    assert (
        "4 of 186" in rising
        and "four bias" in rising
        and "four none" not in rising.split('id="samples"')[1].split("<h2>")[0]
    )
    falling, _ = shown(sweep, "sort=eval%2Faccuracy&down=1&run=bias%2Cseed%3D0")
    assert column(falling, 0) == ["balance=bias", "balance=batch", "balance=none"]
    assert "31 of 186" in falling
