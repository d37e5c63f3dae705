"""Clips as files: what is written is read back, and a bad file is one clear line."""

import io
import re
import subprocess
import sys
import time
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from rewarddance.core import clips
from rewarddance.core.clips import even_rate
from rewarddance.core.errors import InputError
from rewarddance.core.media import Media


@pytest.fixture(scope="module")
def clip():
    """Nine frames of a bright square that moves over a gradient, 8 a second."""
    frames = np.zeros((9, 48, 48, 3), np.uint8)
    frames[:] = (np.arange(48)[:, None, None] * 4 + 20).astype(np.uint8)
    for k in range(9):
        frames[k, 10:24, 2 + 3 * k : 16 + 3 * k] = (220, 40, 60)
    return Media.from_numpy(frames, fps=8.0)


@pytest.mark.parametrize(("name", "lossless", "error"), [
    ("a.mp4", False, 9), ("a.mp4", True, 0), ("a.webm", False, 9), ("a.webm", True, 0), ("a.gif", False, 2),
])  # fmt: skip
def test_a_clip_is_read_back(clip, tmp_path, name, lossless, error):
    clip.save(tmp_path / name, lossless=lossless)
    opened = Media.open(tmp_path / name)
    assert opened.frames.shape == clip.frames.shape
    assert opened.fps == pytest.approx(8.0, rel=1e-6)
    difference = 255 * (opened.frames - clip.frames).abs()
    assert float(difference.mean()) <= error
    with open(tmp_path / name, "rb") as file:  # bytes in memory are the same clip
        assert Media.open(io.BytesIO(file.read()), origin=name).key == opened.key
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
@pytest.mark.parametrize("fps", [2.0, 7.5, 24.0, 30000 / 1001, 60.0])
def test_the_frame_rate_is_kept(clip, tmp_path, name, fps):
    Media(clip.frames, fps).save(tmp_path / name)
    assert Media.open(tmp_path / name).fps == pytest.approx(fps, rel=2e-3)


def test_odd_sides_are_kept(tmp_path):
    media = Media(torch.rand(3, 3, 33, 47), 8.0)
    for name in ("a.mp4", "a.webm", "a.gif"):
        media.save(tmp_path / name)
        assert Media.open(tmp_path / name).frames.shape == media.frames.shape


def test_equal_frames_stay_in_a_gif(tmp_path):
    still = Media(torch.full((9, 3, 16, 16), 0.5), 8.0)
    still.save(tmp_path / "still.gif")
    assert Media.open(tmp_path / "still.gif").num_frames == 9


def test_a_gif_that_merges_equal_frames_is_unfolded(tmp_path):
    """Pillow writes equal frames once, with a longer duration."""
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "red", "red", "blue", "green")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    opened = Media.open(tmp_path / "a.gif")
    assert opened.fps == pytest.approx(10)
    assert [tuple(np.round(f[:, 0, 0].numpy(), 2)) for f in opened.frames[:3]] == [(1, 0, 0)] * 3
    assert opened.num_frames == 5


@pytest.mark.parametrize(("duration", "fps"), [(None, 10), (10, 10), (20, 50), (40, 25)])
def test_a_gif_without_a_duration_is_read_at_the_rate_of_players(duration, fps, tmp_path):
    frames = [Image.new("RGB", (8, 8), (40 * k, 0, 0)) for k in range(4)]
    given = {} if duration is None else {"duration": duration}
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], **given)
    opened = Media.open(tmp_path / "a.gif")
    assert (opened.num_frames, opened.fps) == (4, pytest.approx(fps))


def test_the_opener_of_pictures_takes_no_clip(clip, tmp_path):
    for name, message in (("a.gif", "an animation of"), ("a.mp4", "a clip, not a picture")):
        clip.save(tmp_path / name)
        assert Media.open(tmp_path / name).num_frames > 1
        with pytest.raises(InputError, match=message):
            Media.open_picture(tmp_path / name)
        with pytest.raises(InputError, match=message):
            Media.open_picture(io.BytesIO((tmp_path / name).read_bytes()), origin="x")
    Image.new("RGB", (8, 8)).save(tmp_path / "still.gif")
    assert Media.open_picture(tmp_path / "still.gif").num_frames == 1


def test_uneven_gifs_are_refused(tmp_path):
    frames = [Image.new("RGB", (8, 8), (40 * k, 0, 0)) for k in range(4)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[100, 250, 100, 170])
    with pytest.raises(InputError, match="variable frame rate"):
        Media.open(tmp_path / "a.gif")


def test_other_animations_are_refused_as_before(tmp_path):
    frames = [Image.new("RGB", (8, 8), (40 * k, 0, 0)) for k in range(4)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(InputError, match="an animation of 4 frames, not a picture"):
        Media.open(tmp_path / "a.webp")


def test_even_rate():
    assert even_rate([0, 0.125, 0.25], 1e-3, "x") == pytest.approx(8)
    assert even_rate([0, 0.033, 0.067, 0.1], 1e-3, "x", 30.0) == 30.0  # milliseconds round
    assert even_rate([0, 0.12, 0.25, 0.37, 0.5], 0.01, "x") == pytest.approx(8)
    with pytest.raises(InputError, match=r"x: variable frame rate \(frames 100 to 200 ms apart\)"):
        even_rate([0, 0.1, 0.2, 0.4], 1e-3, "x")
    with pytest.raises(InputError, match="variable"):
        even_rate([0, 0, 0, 0], 1e-3, "x")


def write(path, times, audio_only=False, options=None):
    """A file with frames at these time stamps (in milliseconds), or with a tone and no video."""
    with av.open(str(path), "w", options=options or {}) as container:
        if audio_only:
            stream = container.add_stream("aac", rate=8000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 8000, 0
            container.mux(stream.encode(frame))
        else:
            stream = container.add_stream("libx264", rate=1000)
            stream.width = stream.height = 32
            stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 1000)
            if not times:
                container.start_encoding()
            for k, t in enumerate(times):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 9 * k % 250, np.uint8), format="rgb24")
                frame.pts, frame.time_base = t, Fraction(1, 1000)
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_bad_files_are_one_line(clip, tmp_path):
    clip.save(tmp_path / "whole.mp4")
    clip.save(tmp_path / "whole.webm")
    write(tmp_path / "uneven.mp4", [0, 125, 250, 500, 625])
    write(tmp_path / "sound.mp4", [], audio_only=True)
    write(tmp_path / "none.mp4", [])
    for name in ("mp4", "webm"):
        whole = (tmp_path / f"whole.{name}").read_bytes()
        for share in (0.4, 0.7):
            (tmp_path / f"cut{share}.{name}").write_bytes(whole[: int(share * len(whole))])
    (tmp_path / "noise.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes(range(256)) * 40)
    (tmp_path / "text.mp4").write_bytes(b"not a clip")
    matches = {
        "uneven.mp4": "variable frame rate",
        "sound.mp4": "no video",
        "none.mp4": "no video|no frame|unreadable",
        "cut0.4.mp4": "truncated", "cut0.7.mp4": "truncated", "cut0.4.webm": "truncated", "cut0.7.webm": "truncated",
        "noise.mp4": "unreadable|no video",
        "text.mp4": "not a picture",
        "absent.mp4": "no such file",
    }  # fmt: skip
    for name, match in matches.items():
        with pytest.raises(InputError, match=match) as caught:
            Media.open(tmp_path / name)
        assert re.search(re.escape(name), str(caught.value))
        assert "\n" not in str(caught.value)


def test_long_and_large_clips_are_refused_at_once(tmp_path):
    """By what the header says, before a frame is decoded."""
    write(tmp_path / "long.mp4", [40 * k for k in range(1100)])
    began = time.process_time()
    with pytest.raises(InputError, match=r"long.mp4: over the limit of 1,024 frames"):
        Media.open(tmp_path / "long.mp4")
    assert time.process_time() - began < 1


def ten_minutes_of_4k(path, options):
    """18,000 frames of 3840x2160 at 30 a second: one encoded frame, written again and again."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 3840, 2160, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.full((2160, 3840, 3), 90, np.uint8), format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 30)
        content = bytes(next(iter(stream.encode(frame))))
        for k in range(18_000):
            packet = av.Packet(content)
            packet.stream, packet.is_keyframe, packet.time_base = stream, True, Fraction(1, 30)
            packet.pts = packet.dts = k
            packet.duration = 1
            container.mux(packet)


MEASURED = """
import re, sys, time
from rewarddance.core.clips import read_clip
from rewarddance.core.errors import InputError
import av
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
began, before = time.process_time(), peak()
try: read_clip(sys.argv[1], "long.mp4")
except InputError as error: print(error)
print(time.process_time() - began, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@pytest.mark.parametrize(
    ("counted", "refused", "most_mib"),
    [(True, "over the limit of 1,024 frames", 64), (False, "16 frames of 3840x2160 are over the limit", 768)],
)
def test_ten_minutes_of_4k_are_refused_within_seconds_and_bounded_memory(counted, refused, most_mib, tmp_path):
    """With the number of frames in the header, and without it, where frames are decoded up to the limit."""
    options = {} if counted else {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    ten_minutes_of_4k(tmp_path / "long.mp4", options)
    with av.open(str(tmp_path / "long.mp4")) as container:
        assert container.streams.video[0].frames == (18_000 if counted else 0)
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "long.mp4")]
    line, figures = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    seconds, mib = map(float, figures.split())
    print(f"{seconds:.2f} s of processor time, {mib:.0f} MiB")
    assert line.startswith("long.mp4: ")
    assert refused in line
    assert seconds < 10
    assert mib < most_mib


def test_a_stream_without_a_length_stops_at_the_limit(tmp_path, monkeypatch):
    """A fragmented MP4, as cameras and browsers record it, does not say how many frames it has."""
    live = {"movflags": "frag_every_frame+empty_moov+default_base_moof"}
    write(tmp_path / "live.mp4", [40 * k for k in range(60)], options=live)
    with av.open(str(tmp_path / "live.mp4")) as container:
        assert container.streams.video[0].frames == 0
    assert Media.open(tmp_path / "live.mp4").num_frames == 60
    whole = (tmp_path / "live.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(0.5 * len(whole))])
    cut = Media.open(tmp_path / "cut.mp4")  # a recording may stop at any frame
    assert cut.num_frames < 60
    assert cut.fps == pytest.approx(25)
    decoded = []
    check = clips._check_amount
    monkeypatch.setattr(clips, "MAX_FRAMES", 20)
    monkeypatch.setattr(clips, "_check_amount", lambda num, *more: (decoded.append(num), check(num, *more)))
    with pytest.raises(InputError, match=r"live\.mp4: over the limit of 20 frames"):
        Media.open(tmp_path / "live.mp4")
    assert max(decoded) == 21


def test_the_pixel_limit_counts_all_frames(clip, tmp_path, monkeypatch):
    for name in ("a.mp4", "a.webm", "a.gif"):
        clip.save(tmp_path / name)
        monkeypatch.setattr(clips, "MAX_CLIP_PIXELS", 5 * 48 * 48)
        with pytest.raises(InputError, match=r"frames of 48x48 are over the limit of 11,520 pixels"):
            Media.open(tmp_path / name)
        monkeypatch.undo()


def test_wrong_requests_when_saving(clip, tmp_path):
    for name, media, match in (
        ("a.avi", clip, "saved as .mp4, .webm, .gif"),
        ("a.png", clip, "clip of 9 frames"),
        ("a.mp4", Media(clip.frames), "frames per second"),
        ("a.gif", Media(clip.frames, 60.0), "at most 50 frames"),
    ):
        with pytest.raises(InputError, match=match):
            media.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_pictures_are_saved_and_sheets_hold_all_frames(clip, tmp_path):
    one = Media(clip.frames[:1])
    one.save(tmp_path / "a.png")
    assert Media.open(tmp_path / "a.png").key == one.key
    sheet = np.asarray(clip.contact_sheet(columns=4))
    assert sheet.shape == (3 * 50 - 2, 4 * 50 - 2, 3)
    assert np.array_equal(sheet[50:98, 100:148], clip.to_numpy()[6])


def test_equal_frames_at_another_rate_are_another_clip(clip):
    assert Media(clip.frames, 8.0).key != Media(clip.frames, 16.0).key
    assert Media(clip.frames, 8.0).sketch != Media(clip.frames, 16.0).sketch


def test_without_the_extra_one_line_names_it(clip, tmp_path):
    clip.save(tmp_path / "a.mp4")
    program = (
        "import sys; sys.modules['av'] = None\n"
        "from rewarddance.core.media import Media\n"
        "from rewarddance.core.errors import InputError\n"
        "for call in (lambda: Media.open(sys.argv[1]), lambda: Media.open(sys.argv[2]).save(sys.argv[3])):\n"
        "    try: call()\n"
        "    except InputError as error: print(error)\n"
    )
    clip.save(tmp_path / "a.gif")
    names = [str(tmp_path / n) for n in ("a.mp4", "a.gif", "b.mp4")]
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("pip install 'rewarddance[video]'" in line for line in lines), done
