"""Small files in exactly the layouts of public preference sets, for tests and for benchmarks of the readers.

`LAYOUTS[format](folder, num)` writes a file of `num` rows, its pictures under `folder/images`, and returns its path.
Rows go through all labels of the format, ties included.
"""

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rewarddance.data.tfrecord import write_tfrecord

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SIDE = 24


def png(seed: int) -> bytes:
    """A picture of random pixels, different for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def picture(folder: Path, seed: int, name: str | None = None) -> str:
    """A picture on the disk; its path relative to the folder."""
    path = name or f"images/{seed:05d}.png"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(png(seed))
    return path


def struct(seed: int) -> dict[str, Any]:
    return {"bytes": png(seed), "path": f"{seed}.png"}


def clip(folder: Path, seed: int) -> str:
    """Bytes that stand for a clip; readers never open clips."""
    path = f"videos/{seed:05d}.mp4"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(b"\x00\x00\x00\x18ftypmp42" + str(seed).encode())
    return path


def as_json(folder: Path, name: str, rows: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(rows))
    return path


def as_lines(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def as_csv(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_parquet(folder: Path, name: str, rows: list[dict[str, Any]], **types: pa.DataType) -> Path:
    path = folder / name
    inferred = pa.Table.from_pylist(rows).schema
    schema = pa.schema([pa.field(f.name, types.get(f.name, f.type)) for f in inferred])
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


def own_jsonl(folder: Path, num: int) -> Path:
    labels = ("a", "b", "tie", "both_bad")
    rows = [
        {
            "id": f"pair-{i}",
            "prompt": f"prompt {i // 2}",
            "image_a": picture(folder, 2 * i),
            "image_b": picture(folder, 2 * i + 1),
            "label": labels[i % 4],
            "annotator": f"person-{i % 3}",
            "created": "2026-01-02T03:04:05+00:00",
            "seconds": 4.5,
            "shown": ("ab", "ba")[i % 2],
            "strength": 0.5,
            "model_a": "m1",
            "model_b": "m2",
            "style": "flat",
        }
        for i in range(num)
    ]
    return as_lines(folder, "own.jsonl", rows)


def own_csv(folder: Path, num: int) -> Path:
    rows = [json.loads(line) for line in own_jsonl(folder, num).read_text().splitlines()]
    return as_csv(folder, "own.csv", rows)


def imagereward(folder: Path, num: int) -> Path:
    ranks = ([1, 2, 3], [2, 1, 2], [3, 3, 1])
    rows = [
        {
            "id": f"{i:06d}-0001",
            "prompt": f"prompt {i}",
            "generations": [picture(folder, 3 * i + k) for k in range(3)],
            "ranking": ranks[i % 3],
        }
        for i in range(num)
    ]
    return as_json(folder, "test.json", rows)


def imagerewarddb(folder: Path, num: int) -> Path:
    rows = [
        {
            "image": struct(i),
            "prompt_id": f"{i // 3:06d}-0001",
            "prompt": f"prompt {i // 3}",
            "classification": "Outdoor Scenes",
            "image_amount_in_total": 3,
            "rank": 1 + i % 2,
            "overall_rating": 1 + i % 7,
            "image_text_alignment_rating": 7 - i % 7,
            "fidelity_rating": 4,
        }
        for i in range(num)
    ]
    return as_parquet(folder, "metadata-train.parquet", rows, image=IMAGE)


def hpdv2(folder: Path, num: int) -> Path:
    rows = [
        {
            "prompt": f"prompt {i}",
            "file_path": [picture(folder, 2 * i), picture(folder, 2 * i + 1)],
            "human_preference": [(1, 0), (0, 1)][i % 2],
            "user_hash": f"user{i % 3}",
        }
        for i in range(num)
    ]
    return as_json(folder, "train.json", rows)


def hpdv2_test(folder: Path, num: int) -> Path:
    rows = [
        {
            "prompt": f"prompt {i}",
            "image_path": [picture(folder, 3 * i + k) for k in range(3)],
            "rank": [0, 1, 2],
            "raw_annotations": [
                {"rank": [1, 2, 3], "user_hash": "u1"},
                {"rank": [1, 3, 2], "user_hash": "u2"},
                {"rank": [2, 1, 3], "user_hash": "u3"},
            ],
        }
        for i in range(num)
    ]
    return as_json(folder, "test.json", rows)


def hpdv3(folder: Path, num: int) -> Path:
    rows = [
        {
            "prompt": f"prompt {i}",
            "choice_dist": [12, 7 - i % 8],
            "confidence": 0.75,
            "path1": picture(folder, 2 * i),
            "path2": picture(folder, 2 * i + 1),
            "model1": "flux",
            "model2": "kolors",
        }
        for i in range(num)
    ]
    return as_json(folder, "train.json", rows)


def pickapic(folder: Path, num: int) -> Path:
    labels = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))
    rows = [
        {
            "are_different": True,
            "best_image_uid": "tie" if i % 3 == 2 else f"uid-{i}-{i % 3}",
            "caption": f"prompt {i}",
            "created_at": datetime(2023, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
            "has_label": True,
            "image_0_uid": f"uid-{i}-0",
            "image_1_uid": f"uid-{i}-1",
            "jpg_0": png(2 * i),
            "jpg_1": png(2 * i + 1),
            "label_0": labels[i % 3][0],
            "label_1": labels[i % 3][1],
            "model_0": "stabilityai/stable-diffusion-2-1",
            "model_1": "dreamlike-art/dreamlike-photoreal-2.0",
            "ranking_id": i,
            "user_id": i % 4,
        }
        for i in range(num)
    ]
    return as_parquet(folder, "train-00000-of-00001.parquet", rows)


def richhf(folder: Path, num: int) -> Path:
    rows = [
        {
            "filename": picture(folder, i),
            "aesthetics_score": 0.25 * (i % 5),
            "artifact_score": 0.75,
            "misalignment_score": 0.5,
            "overall_score": 1.0,
            "artifact_map": b"\x80\x01\xff" * 8,
        }
        for i in range(num)
    ]
    path = folder / "train.tfrecord"
    write_tfrecord(rows, path)
    return path


def videofeedback(folder: Path, num: int) -> Path:
    rows = [
        {
            "id": f"v{i}",
            "images": [picture(folder, 4 * i + k) for k in range(2)],
            "text prompt": f"prompt {i}",
            "video link": f"https://example.org/{i}.mp4",
            "visual quality": 1 + i % 4,
            "temporal consistency": 2,
            "dynamic degree": 3,
            "text-to-video alignment": 4,
            "factual consistency": 1,
        }
        for i in range(num)
    ]
    return as_json(folder, "data_annotated.json", rows)


def videogen(folder: Path, num: int) -> Path:
    words = ("A", "B", "same")
    rows = [
        {
            "path_A": clip(folder, 2 * i),
            "path_B": clip(folder, 2 * i + 1),
            "A_model": "sora",
            "B_model": "kling",
            "prompt": f"prompt {i}",
            "VQ": words[i % 3],
            "MQ": words[(i + 1) % 3],
            "TA": words[(i + 2) % 3],
            "Overall": words[i % 3],
            "fps_A": 24.0,
            "num_frames_A": 120,
            "fps_B": 30.0,
            "num_frames_B": 150,
        }
        for i in range(num)
    ]
    return as_csv(folder, "videogen-rewardbench.csv", rows)


def genai_bench(folder: Path, num: int) -> Path:
    words = ("leftvote", "rightvote", "tievote", "bothbad_vote")
    rows = [
        {
            "prompt": f"prompt {i}",
            "left_model": "SDXL",
            "left_image": struct(2 * i),
            "right_model": "Playground v2",
            "right_image": struct(2 * i + 1),
            "vote_type": words[i % 4],
            "anonymous": True,
            "timestamp": 1_714_000_000.25 + i,
        }
        for i in range(num)
    ]
    return as_parquet(folder, "test_v1-00000-of-00001.parquet", rows, left_image=IMAGE, right_image=IMAGE)


def genai_bench_video(folder: Path, num: int) -> Path:
    rows = [
        {
            "prompt": f"prompt {i}",
            "left_model": "AnimateDiff",
            "right_model": "ModelScope",
            "left_video": f"https://example.org/l{i}.mp4",
            "right_video": f"https://example.org/r{i}.mp4",
            "vote_type": "rightvote",
        }
        for i in range(num)
    ]
    return as_parquet(folder, "video-00000-of-00001.parquet", rows)


def mj_bench(folder: Path, num: int) -> Path:
    rows = [
        {
            "caption": f"prompt {i}",
            "image0": struct(2 * i),
            "image1": struct(2 * i + 1),
            "label": 0,
            "category": "object",
        }
        for i in range(num)
    ]
    return as_parquet(folder, "alignment-00000-of-00001.parquet", rows, image0=IMAGE, image1=IMAGE)


def mmrb2(folder: Path, num: int) -> Path:
    pairs = [
        {
            "pair_id": f"p{i}",
            "prompt_source": "oneig",
            "prompt_content": [["text", f"prompt {i}"], ["image", picture(folder, 1_000_000 + i)]],
            "response_a": {"model": "gpt", "response_content": [["image", picture(folder, 2 * i)], ["text", "Done."]]},
            "response_b": {"model": "flux", "response_content": [["image", picture(folder, 2 * i + 1)]]},
            "chosen": "AB"[i % 2],
        }
        for i in range(num)
    ]
    return as_json(folder, "edit.json", {"pairs": pairs})


def trl(folder: Path, num: int) -> Path:
    answer = [{"role": "assistant", "content": [{"type": "image"}]}]
    rows = [
        {
            "images": [picture(folder, 2 * i), picture(folder, 2 * i + 1)],
            "prompt": [{"role": "user", "content": [{"type": "text", "text": f"prompt {i}"}]}],
            "chosen": answer,
            "rejected": answer,
        }
        for i in range(num)
    ]
    return as_lines(folder, "train.jsonl", rows)


def label_studio(folder: Path, num: int) -> Path:
    def result(i: int) -> dict[str, Any]:
        if i % 3 == 2:
            tie = {"choices": ["tie"]}
            return {"from_name": "tie", "to_name": "a", "type": "choices", "value": tie}
        side = {"selected": ("left", "right")[i % 3]}
        return {"from_name": "pw", "to_name": "pw", "type": "pairwise", "value": side}

    rows = [
        {
            "id": i,
            "data": {
                "prompt": f"prompt {i}",
                "image_a": f"/data/local-files/?d={picture(folder, 2 * i)}",
                "image_b": f"/data/local-files/?d={picture(folder, 2 * i + 1)}",
            },
            "annotations": [
                {
                    "id": 10 * i + who,
                    "completed_by": who,
                    "created_at": "2024-05-01T12:00:00.250000Z",
                    "lead_time": 7.25,
                    "was_cancelled": False,
                    "result": [
                        result(i + who),
                        {"from_name": "fidelity", "to_name": "a", "type": "rating", "value": {"rating": 4}},
                    ],
                }
                for who in (1, 2)
            ],
        }
        for i in range(num)
    ]
    return as_json(folder, "project-1.json", rows)


def argilla(folder: Path, num: int) -> Path:
    answers = ("image_a", "image_b", "tie", "both_bad")
    rows = [
        {
            "id": f"r{i}",
            "fields": {
                "prompt": f"prompt {i}",
                "image_a": picture(folder, 2 * i),
                "image_b": picture(folder, 2 * i + 1),
            },
            "metadata": {"style": "flat"},
            "suggestions": {"preference": {"value": "image_b", "score": 0.9, "agent": "a-model"}},
            "responses": {
                "preference": [{"value": answers[i % 4], "user_id": "u1"}, {"value": "image_a", "user_id": "u2"}],
                "style_a": [{"value": 5, "user_id": "u1"}],
            },
            "status": "completed",
            "_server_id": f"s{i}",
        }
        for i in range(num)
    ]
    return as_json(folder, "records.json", rows)


def fastchat(folder: Path, num: int) -> Path:
    words = ("leftvote", "rightvote", "tievote", "bothbad_vote", "chat")
    rows = [
        {
            "tstamp": 1_683_000_000.1234 + i,
            "type": words[i % 5],
            "models": ["vicuna-13b", ("alpaca-13b", "dolly")[i % 2]],
            "states": [{"conv_id": f"c{i}", "messages": [["Human", f"prompt {i}"], ["Assistant", "Hi"]]}, {}],
            "ip": f"10.0.0.{i % 5}",
        }
        for i in range(num)
    ]
    return as_lines(folder, "2023-05-01-conv.jsonl", rows)


LAYOUTS: dict[str, Callable[[Path, int], Path]] = {
    "jsonl": own_jsonl,
    "csv": own_csv,
    "imagereward": imagereward,
    "imagerewarddb": imagerewarddb,
    "hpdv2": hpdv2,
    "hpdv3": hpdv3,
    "pickapic": pickapic,
    "richhf": richhf,
    "videofeedback": videofeedback,
    "videogen": videogen,
    "genai-bench": genai_bench,
    "mj-bench": mj_bench,
    "mmrb2": mmrb2,
    "trl": trl,
    "label-studio": label_studio,
    "argilla": argilla,
    "fastchat": fastchat,
}
