"""Questions that the tests of all backbones ask."""

WORDS = ("yes", "no")


def question(prompt, *images):
    parts = [f"prompt: {prompt}\n"]
    for i, image in enumerate(images):
        parts += [f"image {i + 1}: ", image, "\n"]
    return (*parts, "is image 1 better?")


def mixed_dialogs(pictures):
    """1, 2 and 5 pictures, shared and unshared prefixes, a duplicate, and one without a picture."""
    a, b, c, d, e = pictures[:5]
    pairs = [question("a red circle", x, y) for x in (a, b, c) for y in (a, b, c) if x is not y]
    return [*pairs, question("two blue squares on black", d), question("hm", a, b, c, d, e), ("is it?",), pairs[0]]
