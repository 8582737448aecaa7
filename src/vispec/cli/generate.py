"""`vispec generate`: ask a question about pictures."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from vispec.cli import options as shared
from vispec.cli.parser import tree_shape
from vispec.cli.terminal import Screen
from vispec.errors import VispecError
from vispec.images import load_image

DESCRIPTION = """\
Ask a vision-language model about pictures, or about nothing but your words.

On a terminal the answer is streamed, with the tokens that the draft had proposed and the
target accepted marked in green. In a pipe it is the bare text."""

EXAMPLES = """\
examples:
  vispec generate --image cat.jpg "What is this?"
  vispec generate --image a.png --image b.png "What differs between these pictures?"
  vispec generate --image cat.jpg --temperature 0.7 --top-p 0.9 --seed 3 "Tell its story."
  echo "What is this?" | vispec generate --image cat.jpg --json
  vispec generate --image cat.jpg --plain "What is this?"     the same text, one token a pass
  vispec generate --target ./my-llava --draft ./my-draft --image cat.jpg "What is this?"
"""


def add(verbs: argparse._SubParsersAction[Any]) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "generate", help="ask about pictures", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument(
        "prompt", nargs="?", default="-", help="what to ask; read from a pipe when absent or '-'"
    )
    parser.add_argument(
        "-i",
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="a picture to ask about; may be given several times",
    )
    parser.add_argument(
        "--video",
        action="append",
        default=[],
        metavar="FILE",
        help="a video to ask about, where the target takes videos; needs vispec[video], and "
        "torchvision for most families",
    )
    parser.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help="how many frames of a video to show, evenly spaced (default: the target's own rule)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="HOST",
        help="let --image and --video be addresses at this host",
    )
    shared.add_models(parser)
    shared.add_sampling(parser)
    group = parser.add_argument_group("speculation")
    group.add_argument(
        "--plain", action="store_true", help="the ordinary loop, without a draft; the same text"
    )
    group.add_argument(
        "--tree",
        type=tree_shape,
        metavar="SHAPE",
        help="SIZE,DEPTH,WIDTH of the draft tree, such as 30,4,8, or one number for a chain of "
        "that length",
    )
    group.add_argument(
        "--accept",
        default="keyed",
        choices=("keyed", "stochastic"),
        help="rule for sampled tokens: 'keyed' gives the same text as --plain for the same seed; "
        "'stochastic' is the papers' rule with the same distribution",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one object: text, token_ids and stats"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Load, ask, show."""
    from vispec.messages import is_address

    # Before a model is loaded; addresses are for later.
    images = [one if is_address(one) else load_image(one) for one in options.image]
    prompt = _prompt(options.prompt)
    draft = None if options.plain else shared.draft_name(options)
    vlm = shared.load(options, draft)
    request = {
        "images": images,
        "videos": options.video,
        "frames": options.frames,
        "speculate": not options.plain,
        "accept": options.accept,
        **shared.sampling(options),
    }
    if options.json:
        result = vlm.generate(prompt, **request)
        answer = {
            "text": result.text,
            "token_ids": list(result.token_ids),
            "finish_reason": result.finish_reason,
            "stats": result.stats.as_dict(),
        }
        print(json.dumps(answer, ensure_ascii=False))
        return 0
    screen = Screen()
    stream = vlm.stream(prompt, **request)
    screen.stream(stream)
    stats = stream.result.stats
    if draft is not None:
        screen.legend()
    screen.note(
        f"{stats.new_tokens} tokens, {stats.tokens_per_s:.1f} a second, "
        f"{stats.acceptance_length:.2f} a pass ({stats.target_passes} passes)"
    )
    return 0


def _prompt(words: str) -> str:
    """The prompt, from the pipe for '-'."""
    if words == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise VispecError(
                'no prompt: write it in quotes behind the options (vispec generate "What is '
                'this?"), or pipe it in'
            )
        try:
            words = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise VispecError(f"the prompt in the pipe is not text ({error})") from None
        words = words.removesuffix("\n")
    if not words.strip():
        raise VispecError("the prompt is empty; say what you want to know")
    return words
