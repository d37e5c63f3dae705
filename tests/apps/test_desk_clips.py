"""Clips at the desk: made equal, blind, served in parts, played in sync, judged by keyboard, exported."""

import io
import json

import av
import numpy as np
import pytest
from desk_pages import enter, shoot, stored, submit_by_key, wait_for_count
from desks import DeskServer, clip, export, new_clip_data, process

from rewarddance.apps.annotate.clips import Shape, common_shape, equal_clips, shape_of, shuffled_clip
from rewarddance.apps.annotate.config import DeskConfig
from rewarddance.apps.annotate.media import part_of
from rewarddance.apps.cli import main
from rewarddance.core.clips import read_clip
from rewarddance.core.errors import InputError
from rewarddance.data.parquet import voted_records


@pytest.fixture
def clip_desk(tmp_path):
    opened = []

    def make(clips=None, **settings):
        data = new_clip_data(tmp_path / "data", clips=clips)
        config = DeskConfig(**{"checks": 0, "repeats": 0, "judgements": 1, **settings})
        opened.append(DeskServer(data, f"sqlite:///{tmp_path}/desk.db", config))
        return opened[-1]

    yield make
    for desk in opened:
        desk.database.close()


def decoded(content):
    return read_clip(io.BytesIO(content), "clip")


@pytest.mark.parametrize(
    ("shapes", "common"),
    [
        ([Shape(480, 640, 24, 24.0)] * 2, Shape(480, 640, 24, 24.0)),
        ([Shape(48, 64, 16, 8.0), Shape(64, 48, 15, 10.0)], Shape(256, 256, 80, 40.0)),  # lcm(8, 10), 2 s
        ([Shape(256, 257, 8, 8.0), Shape(256, 257, 12, 16.0)], Shape(256, 258, 16, 16.0)),
        ([Shape(300, 300, 24, 24.0), Shape(300, 300, 50, 25.0)], Shape(300, 300, 120, 60.0)),
        ([Shape(720, 2560, 300, 120.0)], Shape(360, 1280, 150, 60.0)),
        ([Shape(300, 300, 48, 24000 / 1001)], Shape(300, 300, 48, 24000 / 1001)),
        ([Shape(300, 300, 5, 2.5), Shape(300, 300, 8, 4.0)], Shape(300, 300, 40, 20.0)),  # lcm(5/2, 4)
    ],
)
def test_the_common_shape(shapes, common):
    assert common_shape(shapes) == common


def test_clips_are_made_equal_and_keep_their_pixels_and_times():
    """A square in front of a plain ground: its place at every time says which source frame is shown."""
    files = [clip(0), clip(0, frames=20, fps=20.0), clip(0, suffix=".gif")]
    shapes = [shape_of(content, "clip") for content in files]
    made = equal_clips(files, shapes)
    assert len(set(map(len, made))) == 1
    for content, source in zip(made, shapes, strict=True):
        assert b"secret" not in content
        assert b"Lavf" not in content
        with av.open(io.BytesIO(content)) as container:
            assert set(container.metadata) <= {"major_brand", "minor_version", "compatible_brands"}
        pixels, fps = decoded(content)
        assert (pixels.shape, fps) == ((80, 192, 256, 3), 40.0)
        for k in range(80):
            shown = min(source.num_frames - 1, int(k / 40 * source.fps + 1e-6))
            red = np.flatnonzero(pixels[k, 64, :, 0] > 130)
            assert red[0] == pytest.approx(4 * 2 * shown, abs=1)
        inside, outside = pixels[0, 40:88, 8:56].mean((0, 1)), pixels[0, 120:180].mean((0, 1))
        assert inside == pytest.approx([220, 40, 60], abs=6)
        assert outside == pytest.approx([40, 40, 40], abs=6)


def test_a_check_shows_the_same_colours_in_other_places():
    content = clip(1)
    before, after = decoded(content)[0], decoded(shuffled_clip(content, 0, "check"))[0]
    assert after.shape == before.shape
    assert after.mean((1, 2)) == pytest.approx(before.mean((1, 2)), abs=3)
    assert abs(after[:, 10:22].astype(int) - before[:, 10:22]).mean() > 10


def test_clips_are_blind_and_served_in_parts(clip_desk):
    desk = clip_desk()
    ada, ben = desk.person("ada"), desk.person("ben")
    work = ada.next()
    assert "secret" not in json.dumps(work)
    assert work["item"]["fps"] == 40
    files = []
    for token in work["item"]["media"]:
        whole = ada.http.get(f"/media/{token}")
        assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
        assert whole.headers["accept-ranges"] == "bytes"
        assert b"secret" not in whole.content + str(whole.headers).encode()
        assert decoded(whole.content)[0].shape == (80, 256, 256, 3)
        files.append(whole.content)
        part = ada.http.get(f"/media/{token}", headers={"Range": "bytes=100-299"})
        assert (part.status_code, part.content) == (206, files[-1][100:300])
        assert part.headers["content-range"] == f"bytes 100-299/{len(files[-1])}"
        assert part.headers["content-length"] == "200"
        assert ben.http.get(f"/media/{token}").status_code == 404  # somebody else's
    assert len(files[0]) == len(files[1])
    assert files[0] != files[1]
    assert "media-src 'self';" in ada.http.get("/").headers["content-security-policy"]


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        (None, 200, b"0123456789"),
        ("bytes=0-", 206, b"0123456789"),
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-99", 206, b"789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=-99", 206, b"0123456789"),
        ("bytes=10-", 416, b""),
        ("bytes=-0", 416, b""),
        ("bytes=4-2", 200, b"0123456789"),
        ("bytes=0-1,3-4", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
        ("bytes=-", 200, b"0123456789"),
    ],
)
def test_byte_ranges(wanted, status, part):
    answer = part_of(b"0123456789", wanted)
    assert (answer.status, answer.content) == (status, part)
    if status == 416:
        assert answer.headers["Content-Range"] == "bytes */10"


@pytest.mark.parametrize(("task", "items"), [("rating", 4), ("ranking", 2)])
def test_clips_are_rated_and_ranked(clip_desk, task, items):
    desk = clip_desk(task=task, criteria=("overall",))
    answer = {"rating": 4} if task == "rating" else {"ranks": [1, 2]}
    assert desk.person().work(lambda clips: answer) == items
    assert {v.kind for r in export(desk) for v in r.votes} == {task}


def test_checks_of_clips(clip_desk):
    desk = clip_desk(checks=0.5)
    assert desk.filled.checks == 2
    ada = desk.person()
    assert ada.work(lambda clips: {"choice": "tie"}) > 2  # the checks are shown too
    assert sum(len(r.votes) for r in export(desk)) == 2


def test_a_missing_pyav_and_bad_clips_are_one_clear_line_at_the_start(clip_desk, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"record r0: secret/r0-1.mp4: .*truncated"):
        clip_desk(clips=[(clip(0), ".mp4"), (clip(1)[:700], ".mp4")])
    data = new_clip_data(tmp_path / "good")
    command = ["annotate", str(data), "--checks", "0"]
    (data / "secret" / "r1-0.mp4").rename(data / "moved")
    from rewarddance.apps.annotating import Annotate

    with pytest.raises(InputError, match=r"record r1: secret/r1-0.mp4: no such clip in "):
        Annotate.read("rewarddance annotate", command[1:]).run()
    (data / "moved").rename(data / "secret" / "r1-0.mp4")
    monkeypatch.setattr("uvicorn.run", lambda app, **_: None)
    for served in (False, True):  # on the first start and on later ones
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, "av", None)
            with pytest.raises(InputError, match=r"need PyAV; pip install 'rewarddance\[video\]'"):
                Annotate.read("rewarddance annotate", command[1:]).run()
        if not served:
            Annotate.read("rewarddance annotate", command[1:]).run()


TIMES = "[...document.querySelectorAll('video')].map(v => v.currentTime)"
PLAYING = "() => [...document.querySelectorAll('video')].every(v => !v.paused && v.currentTime > 0)"


@pytest.mark.browser
def test_two_clips_loop_in_sync_and_are_judged_by_keyboard(new_page, tmp_path):
    data, url = new_clip_data(tmp_path / "data"), f"sqlite:///{tmp_path}/desk.db"
    flags = ("--judgements", 1, "--checks", 0, "--repeats", 0, "--invite", "ada")
    with process(data, url, *flags) as (_, _, links):
        page = new_page()
        held = []
        page.route("**/media/*", lambda route: held.append(route) if not held else route.continue_())
        enter(page, links["ada"])
        wait_for_count(page, "0 done")
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("() => [...document.querySelectorAll('video')].some(v => v.readyState === 4)")
        assert page.is_disabled("#submit")
        while not held:
            page.wait_for_timeout(20)
        held[0].continue_()
        page.wait_for_function("() => document.getElementById('submit')?.disabled === false")
        page.wait_for_function(PLAYING)
        for _ in range(2):  # the clips last 2 s, so that they begin anew meanwhile
            page.wait_for_timeout(2000)
            page.wait_for_function(PLAYING)
            left, right = page.evaluate(TIMES)
            assert abs(left - right) < 0.1
        shoot(page, "clips")
        page.keyboard.press("p")
        page.wait_for_function("() => [...document.querySelectorAll('video')].every(v => v.paused && !v.seeking)")
        left, right = page.evaluate(TIMES)
        assert left == right
        at = round(left * 40 - 0.5)
        assert page.inner_text("#moment") == f"{at + 1} / 80"
        page.keyboard.press(".")
        page.wait_for_function(
            "text => document.getElementById('moment').textContent === text", arg=f"{(at + 1) % 80 + 1} / 80"
        )
        assert page.evaluate(TIMES) == pytest.approx([((at + 1) % 80 + 0.5) / 40] * 2)
        page.keyboard.press(",")
        page.keyboard.press("p")
        page.wait_for_function(PLAYING)
        boxes = [f.bounding_box() for f in page.query_selector_all("video")]
        assert (boxes[0]["width"], boxes[0]["height"]) == (boxes[1]["width"], boxes[1]["height"])
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        shoot(page, "clips-phone")
        page.keyboard.press("Enter")
        wait_for_count(page, "1 done")
        submit_by_key(page, "ArrowRight")
        wait_for_count(page, "2 done, 0 left")
    assert stored(url) == [{"overall": {"choice": "first"}}, {"overall": {"choice": "second"}}]
    assert main(["annotate", "export", "--database", url, "--out", str(tmp_path / "judged")]) == 0
    records = list(voted_records(tmp_path / "judged" / "train.parquet"))
    assert [[m.path for m in r.media] for r in records] == [
        [f"secret/r{i}-0.mp4", f"secret/r{i}-1.webm"] for i in (0, 1)
    ]
    assert [len(r.votes) for r in records] == [1, 1]


def test_a_blind_study_of_clips(tmp_path):
    """Two folders of clips. On one of three prompts both systems made the same clip, which nobody is asked about."""
    from rewarddance.apps.annotate.database import open_database
    from rewarddance.apps.annotate.filling import fill

    made = {"a": [clip(0), clip(1), clip(2)], "b": [clip(3), clip(1), clip(2, frames=12)]}
    for system, clips in made.items():
        (tmp_path / system).mkdir()
        entries = [{"file": f"{i}.mp4", "prompt": f"a clip {i}"} for i in range(3)]
        (tmp_path / system / "samples.json").write_text(json.dumps(entries))
        for i, content in enumerate(clips):
            (tmp_path / system / f"{i}.mp4").write_bytes(content)
    (tmp_path / "prompts.txt").write_text("".join(f"a clip {i}\n" for i in range(3)))
    study = tmp_path / "study"
    systems = ["--a", str(tmp_path / "a"), "--b", str(tmp_path / "b")]
    assert main(["ab", "create", *systems, "--prompts", str(tmp_path / "prompts.txt"), "--out", str(study)]) == 0
    assert json.loads((study / "study.json").read_text())["identical"] == {"A-B": 1}
    database = open_database(f"sqlite:///{tmp_path}/desk.db")
    filled = fill(database, study, DeskConfig(checks=0, repeats=0, judgements=1))
    assert (filled.items, filled.passed_over) == (2, 1)
    database.close()
