"""How SmolLM2 answers the project's 200 questions: data/studies/evaluation.json.

python data/studies/make_evaluation.py

Ten ways to ask, and once more with weights of four bits: the log-probability of every choice. Kept
after every way; a run that was stopped goes on. About forty seconds of one core for each.
"""

import json
from pathlib import Path

import torch
from tqdm import tqdm

from minillama import load
from minillama.chat import encode_dialog
from minillama.checkpoints.atomic import write_whole
from minillama.evaluation.likelihood import AnswerScorer
from minillama.evaluation.tasks import encode_pair
from minillama.training.jsonl import read_jsonl


NAME, OUT = "smollm2-135m-instruct", Path(__file__).with_name("evaluation.json")
QUESTIONS = Path(__file__).parents[1] / "evaluation" / "questions.jsonl"
WAYS = {  # before the answer; {} is the question
    "Question, Answer": "Question: {}\nAnswer:",
    "Q, A": "Q: {}\nA:",
    "the question alone": "{}",
    "small letters": "question: {}\nanswer:",
    "the answer is": "Question: {}\nThe answer is",
    "Problem, Solution": "Problem: {}\nSolution:",
    "told what to do": "Answer the following question.\n\nQuestion: {}\nAnswer:",
}
EXAMPLES = [("Which colour is snow?", "white"), ("What do we drink from?", "a cup"),
            ("How many legs has a horse?", "four"), ("What is the opposite of up?", "down"),
            ("Where do fish live?", "in the water")]  # fmt: skip


def listed(value: dict) -> str:
    """A question with its choices behind letters."""
    lines = [f"{letter}. {text}" for letter, text in zip("ABCD", value["choices"], strict=True)]
    return "\n".join([f"Question: {value['question']}", *lines, "Answer:"])


def pairs(tokenizer, way: str, value: dict) -> list[tuple[list[int], list[int]]]:
    """(context, answer) as ids, for each choice."""
    if way == "a chat":
        message = {"role": "user", "content": value["question"]}
        context = encode_dialog(tokenizer, [message])
        return [(context, tokenizer.encode(text)) for text in value["choices"]]
    if way == "letters":
        return [encode_pair(tokenizer, listed(value), f" {letter}") for letter in "ABCD"]
    prompt = WAYS.get(way, WAYS["Question, Answer"])
    shown = EXAMPLES if way == "five examples" else []
    before = "".join(f"{prompt.format(q)} {a}\n\n" for q, a in shown)
    context = before + prompt.format(value["question"])
    return [encode_pair(tokenizer, context, f" {text}") for text in value["choices"]]


def main() -> None:
    about = {"command": "python data/studies/make_evaluation.py", "torch": torch.__version__}
    values, _ = read_jsonl(QUESTIONS, dict)
    kept = json.loads(OUT.read_text(encoding="utf-8"))["ways"] if OUT.exists() else {}
    for way in ("Question, Answer", "letters", "4 bits", "a chat", "five examples", *WAYS):
        if way in kept:
            continue
        model, tokenizer = load(NAME, quantize="int4" if way == "4 bits" else None)
        scorer, rows = AnswerScorer(model), []
        for value in tqdm(values, way):
            asked = pairs(tokenizer, way, value)
            scores = scorer(asked[0][0], [answer for _, answer in asked])
            rows.append([round(score.logprob, 3) for score in scores])
        kept[way] = rows
        lines = ",\n".join(f"  {json.dumps(way)}: {json.dumps(kept[way])}" for way in kept)
        write_whole(OUT, f'{{"about": {json.dumps(about)},\n "ways": {{\n{lines}}}}}\n'.encode())


if __name__ == "__main__":
    main()
