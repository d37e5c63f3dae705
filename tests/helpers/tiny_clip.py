"""A CLIP model of random weights in a local folder."""

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = TEXT | {"image_size": 32, "patch_size": 16}


def tiny_clip(folder):
    """Write the model, with a tokenizer of the letters a to h and the settings of its image processor."""
    words = ["<|startoftext|>", "<|endoftext|>", *(f"{c}</w>" for c in "abcdefgh"), *"abcdefgh"]
    tokenizer = CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=6)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    text = TEXT | {"vocab_size": 20, "max_position_embeddings": 6, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, '
        '"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}'
    )
    return folder
