"""Persona dialogues: the published forms, who is modelled, and what is refused."""

import csv
import json
import tracemalloc

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.config import TaskConfig
from lorascope.data.dialogue import DIALOGUE_METRICS
from lorascope.data.task import read_task
from lorascope.errors import DataError, UsageError

PARLAI = """1 your persona: i like cats.
2 your persona: i am old.
3 hello\thi there\t\tno thanks|hi there
4 do you have pets ?\ttwo cats .\t\ttwo dogs .|two cats .
1 your persona: i swim.
2 hey\thello you\t\tbye|hello you
"""
UTTERANCES = [
    {"history": ["hello"], "candidates": ["no thanks", "hi there"]},
    {"history": ["hello", "hi there", "do you have pets ?"], "candidates": ["two dogs .", "two cats ."]},
]
PERSONALITY = ["i like cats.", "i am old."]
DIALOGUE = {"personality": PERSONALITY, "utterances": UTTERANCES}
OTHER = {"personality": ["i swim."], "utterances": [{"history": ["hey"], "candidates": ["bye", "hello you"]}]}
HEADER = ("user 1 personas", "user 2 personas", "Best Generated Conversation")
WORDS = st.text(st.characters(exclude_characters="\t\n\r|", exclude_categories=["Cs"]), max_size=12)


def read(path, **more):
    return read_task(TaskConfig(name="personachat", data={"train": str(path), "validation": str(path)}, **more))


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def parlai(tmp_path, text=PARLAI):
    return written(tmp_path / "valid_self_original.txt", text)


def lines(path, *objects):
    return written(path, "".join(json.dumps(value) + "\n" for value in objects))


def synthetic(path, *conversations, personas=("i bake.\ni knit.", "i fly.")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *((*personas, conversation) for conversation in conversations)])
    return path


def texts(record):
    return [(segment.role, segment.text) for segment in record.segments]


@pytest.mark.shared_data
def test_published_row_counts(shared_data):
    path = shared_data / "personachat"
    task = read_task(TaskConfig(name="personachat", data=str(path), max_eval=3), with_train=False)
    assert task.counts == {"validation": {"dialogues": 1000, "replies": 7801}}
    assert len(task.eval) == 3
    record = task.eval[1]
    assert record.persona[0] == "i read twenty books a year."
    assert (len(record.candidates), record.candidates[-1]) == (20, record.answers[0])
    assert [role for role, _ in texts(record)] == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.shared_data
def test_published_synthetic_row_counts_and_what_is_left_out(shared_data):
    task = read_task(TaskConfig(name="personachat", data=str(shared_data / "synthetic_persona_chat")), with_train=False)
    assert task.counts["validation"]["dialogues"] == 1000
    assert task.shape == "persona dialogues, Synthetic-Persona-Chat CSV, user 2's turns"
    config = TaskConfig(name="personachat", data=str(shared_data / "synthetic_persona_chat"), speaker="user 1")
    test = read_task(config, "test", with_train=False)
    assert test.counts["test"]["dialogues"] == 968
    # One conversation is empty, another names no speaker.
    dropped = [notice for notice in test.notices if notice.kind == "dropped"]
    assert [notice.count for notice in dropped] == [2]
    assert len({record.id.split("-")[0] for record in test.eval}) == 966
    everything = [segment.text for record in task.eval + test.eval for segment in record.segments[1:]]
    assert not any(text.startswith(("User 1:", "User 2:", "*", "[Later]")) for text in everything)


def test_each_reply_is_a_record_with_all_before_it_as_history(tmp_path):
    first, second, third = read(parlai(tmp_path)).train
    system = ("system", "Your persona:\n- i like cats.\n- i am old.")
    assert texts(first) == [system, ("user", "hello"), ("assistant", "hi there")]
    assert texts(second) == [*texts(first), ("user", "do you have pets ?"), ("assistant", "two cats .")]
    assert [segment.is_target for segment in second.segments] == [False] * 4 + [True]
    assert (second.answers, second.candidates) == (("two cats .",), ("two dogs .", "two cats ."))
    assert (second.persona, second.id, second.where.rsplit(":")[-1]) == (tuple(PERSONALITY), "0-1", "4")
    assert first.group == second.group != third.group


def test_all_published_forms_give_the_same_records(tmp_path):
    rows = [{"personality": one["personality"], **exchange} for one in (DIALOGUE, OTHER) for exchange in one["utterances"]]
    datasets.Dataset.from_list([DIALOGUE, OTHER]).to_parquet(tmp_path / "a.parquet")
    files = [
        parlai(tmp_path),
        lines(tmp_path / "whole.jsonl", DIALOGUE, OTHER),
        lines(tmp_path / "rows.jsonl", *rows),
        written(tmp_path / "list.json", json.dumps([DIALOGUE, OTHER])),
        written(tmp_path / "both.json", json.dumps({"train": [DIALOGUE, OTHER], "valid": [DIALOGUE, OTHER]})),
        written(tmp_path / "pretty.json", json.dumps({"train": [DIALOGUE, OTHER], "val": [DIALOGUE, OTHER]}, indent=1)),
        tmp_path / "a.parquet",
    ]
    tasks = [read(path) for path in files]
    assert len({tuple((record.id, *record.content) for record in task.train) for task in tasks}) == 1
    assert all(task.counts["train"] == {"dialogues": 2, "replies": 3} for task in tasks)
    assert {tuple(record.group for record in task.train) for task in tasks} == {
        ("hello\nhi there\ndo you have pets ?\ntwo cats .",) * 2 + ("hey\nhello you",)
    }


def test_a_file_of_both_splits_is_both_when_it_stands_alone(tmp_path):
    written(tmp_path / "personachat_self_original.json", json.dumps({"train": [DIALOGUE], "valid": [OTHER]}))
    for data in (tmp_path, tmp_path / "personachat_self_original.json"):
        task = read_task(TaskConfig(name="personachat", data=str(data)))
        assert (len(task.train), len(task.eval)) == (2, 1)
        assert task.train[1].where.endswith("personachat_self_original.json, train item 1, reply 2")
    with pytest.raises(DataError, match="the file holds no test split"):
        read_task(TaskConfig(name="personachat", data={"test": str(data)}), "test", with_train=False)


def test_hub_rows_are_read_as_files_are(tmp_path):
    rows = datasets.Dataset.from_list([DIALOGUE, OTHER])
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "hub")
    task = read_task(TaskConfig(name="personachat", data=str(tmp_path / "hub")))
    assert task.checksum == read(lines(tmp_path / "a.jsonl", DIALOGUE, OTHER)).checksum
    assert task.shape == "persona dialogues, personality + utterances dataset rows"


def test_what_is_scored_and_that_replies_are_generated(tmp_path):
    task = read(parlai(tmp_path))
    assert (task.task_type, task.generates) == ("CAUSAL_LM", True)
    assert task.metric_names == DIALOGUE_METRICS


def test_both_personas_are_stated_where_the_file_tells_both(tmp_path):
    text = "1 partner's persona: i ski.\n2 your persona: i swim.\n3 hey\thello\n"
    [record] = read(parlai(tmp_path, text)).train
    assert record.segments[0].text == "Your persona:\n- i swim.\nYour partner's persona:\n- i ski."
    assert (record.persona, record.candidates) == (("i swim.",), ())


def test_a_silent_partner_leaves_the_first_word_to_the_modelled_speaker(tmp_path):
    text = "1 your persona: i swim.\n2 __SILENCE__\thello\n3 hey\thow are you\n"
    records = read(parlai(tmp_path, text)).train
    expected = [("assistant", "hello"), ("user", "hey"), ("assistant", "how are you")]
    assert [texts(record)[1:] for record in records] == [expected[:1], expected]
    history = ["__ SILENCE __", "hello", "hey"]
    row = {"personality": ["i swim."], "history": history, "candidates": ["how are you"]}
    assert texts(read(lines(tmp_path / "a.jsonl", row)).train[0])[1:] == expected


def test_the_right_candidate_is_put_last(tmp_path):
    text = "1 your persona: i swim.\n2 hey\thello\t\thello|bye\n"
    assert read(parlai(tmp_path, text)).train[0].candidates == ("bye", "hello")


def test_both_sides_of_a_dialogue_are_held_out_together(tmp_path):
    one = "1 your persona: i swim.\n2 a{0}\tb{0}\n3 c{0}\td{0}\n4 e{0}\tf{0}\n"
    other = "1 your persona: i ski.\n2 __SILENCE__\ta{0}\n3 b{0}\tc{0}\n4 d{0}\te{0}\n"
    text = "".join((one + other).format(number) for number in range(6))
    path = str(parlai(tmp_path, text))
    task = read_task(TaskConfig(name="personachat", data=path, eval_fraction=0.5))
    held_out = {record.segments[1].text for record in task.eval}
    assert len(held_out) == 3
    assert not held_out & {record.segments[1].text for record in task.train}


@pytest.mark.parametrize(("speaker", "persona"), [("user 2", ("i fly.",)), ("user 1", ("i bake.", "i knit."))])
def test_the_speaker_of_synthetic_data_is_the_assistant(tmp_path, speaker, persona):
    path = synthetic(tmp_path / "a.csv", "User 1: Hi!\nUser 2: Hello!\nUser 1: What is up?\nUser 2: A lot.")
    task = read(path, speaker=speaker)
    turns = ["Hi!", "Hello!", "What is up?", "A lot."]
    roles = ["user", "assistant", "user", "assistant"] if speaker == "user 2" else ["assistant", "user", "assistant"]
    assert texts(task.train[-1])[1:] == list(zip(roles, turns, strict=False))
    assert (len(task.train), task.train[-1].persona) == (2, persona)
    assert task.train[0].where == f"{path}:2, turn {2 if speaker == 'user 2' else 1}"


def test_the_default_speaker_is_user_2(tmp_path):
    path = synthetic(tmp_path / "a.csv", "User 1: Hi!\nUser 2: Hello!")
    assert read(path).checksum == read(path, speaker="user 2").checksum


def test_generated_conversations_are_read_in_every_form_met(tmp_path):
    forms = [
        "User 1: Hi!\nUser 2: Hello!\nAll well?",
        "*User 1:* Hi!\n\n*User 2:* Hello!\nAll well?",
        "* User 1: Hi! *\n* User 2: Hello! *\nAll well?",
        "* * *\nUser 1: Hi!\n* * *\n* * User 2: * * Hello!\n[Later]\nAll well?",
        "User 1: Hi!\n(Later)\nUser 2: Hello!\nUser 2: All well?",
    ]
    task = read(synthetic(tmp_path / "a.csv", *forms))
    assert {tuple(texts(record)[1:]) for record in task.train} == {(("user", "Hi!"), ("assistant", "Hello!\nAll well?"))}
    assert len(task.train) == 5
    [unspoken] = [notice for notice in task.notices if (notice.kind, notice.where) == ("unspoken", "train")]
    assert unspoken.count == 2


def test_a_conversation_in_which_the_speaker_says_nothing_is_left_out_and_counted(tmp_path):
    task = read(synthetic(tmp_path / "a.csv", "User 1: Hi!", "User 1: Hi!\nUser 2:\nUser 2: Ho!", ""))
    assert task.counts["train"] == {"dialogues": 3, "replies": 1}
    counts = {notice.kind: notice.count for notice in task.notices if notice.where == "train"}
    assert counts == {"dropped": 2, "blank_turn": 1}


def test_an_unknown_speaker_is_a_usage_error_that_lists_the_known(tmp_path):
    path = synthetic(tmp_path / "a.csv", "User 1: Hi!\nUser 2: Hello!")
    with pytest.raises(UsageError, match=r"task\.speaker: unknown speaker 'user 3'; known: 'user 2', 'user 1'"):
        read(path, speaker="user 3")


@pytest.mark.parametrize("form", ["parlai", "whole", "both"])
def test_a_speaker_is_refused_where_only_one_is_modelled(tmp_path, form):
    both = json.dumps({"train": [DIALOGUE], "valid": [DIALOGUE]})
    path = {
        "parlai": parlai(tmp_path),
        "whole": lines(tmp_path / "a.jsonl", DIALOGUE),
        "both": written(tmp_path / "b.json", both),
    }
    with pytest.raises(UsageError, match=r"task\.speaker: .* holds the replies of one speaker only; remove the key"):
        read(path[form], speaker="user 1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello\thi\n", "txt:1: the line does not begin with its number"),
        ("2 your persona: x\n", "txt:1: line number 2 begins the file"),
        ("1 your persona: x\n3 a\tb\n", "txt:2: line number 3 follows 1"),
        ("1 your persona: x\n2 a\tb\n2 a\tb\n", "txt:3: line number 2 follows 2"),
        ("1 a\tb\n2 c\td\n", "txt:1: the dialogue states no persona of the speaker"),
        ("1 partner's persona: x\n2 c\td\n", "txt:1: the dialogue states no persona of the speaker"),
        ("1 your persona: x\n1 your persona: x\n2 a\tb\n", "txt:1: a dialogue without a turn"),
        ("1 your persona: x\n", "txt:1: a dialogue without a turn"),
        ("1 your persona: \n2 a\tb\n", "txt:1: the persona sentence is empty"),
        ("1 your persona: x\n2 a\tb\n3 your persona: y\n", "txt:3: a persona sentence after the first turn"),
        ("1 your persona: x\n2 a\n", "txt:2: no reply after the partner's turn"),
        ("1 your persona: x\n2 a\t \t\tb|c\n", "txt:2: the reply is empty"),
        ("1 your persona: x\n2 \tb\n", "txt:2: the partner's turn is empty"),
        ("1 your persona: x\n2 a\tb\t\tc|d\n", "txt:2: the reply is not among its candidates"),
        ("1 your persona: x\n2 a\tb\t\tc||b\n", "txt:2: the candidate is empty"),
    ],
)
def test_a_broken_parlai_file_is_a_data_error_with_its_line(tmp_path, text, expected):
    with pytest.raises(DataError) as caught:
        read(parlai(tmp_path, text))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"personality": ["x"], "dialog": []}, "the columns 'personality', 'dialog' fit no known form of PersonaChat; known:"),
        ({"personality": [], "utterances": UTTERANCES}, "jsonl:1: the dialogue states no persona"),
        ({"personality": "x", "utterances": UTTERANCES}, "jsonl:1: personality is str, not a list"),
        ({"personality": ["x"], "utterances": []}, "jsonl:1: a dialogue without a turn"),
        ({"personality": ["x"], "utterances": [{"history": ["a"]}]}, "jsonl:1: an utterance lacks 'history' or"),
        ({"personality": ["x"], "history": ["a"], "candidates": []}, "jsonl:1: no candidates, of which the last is"),
        ({"personality": ["x"], "history": ["a"], "candidates": ["b", " "]}, "jsonl:1: the reply is empty"),
        ({"personality": ["x"], "history": None, "candidates": ["b"]}, "jsonl:1: history is missing, not a list"),
        ({"personality": [3], "history": ["a"], "candidates": ["b"]}, "jsonl:1: the persona sentence is int, not text"),
    ],
)
def test_broken_rows_are_data_errors_with_their_line(tmp_path, row, expected):
    with pytest.raises(DataError) as caught:
        read(lines(tmp_path / "a.jsonl", row))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"train": ["x"], "valid": []}, "both.json, train item 1: no dialogue here"),
        ({"train": [DIALOGUE], "valid": {}}, "both.json: split 'valid' is dict, not a list"),
        ({"train": [DIALOGUE], "rest": []}, "both.json: 'rest' is no split; known: train, validation"),
        ({"train": [DIALOGUE]}, "both.json: the file holds no validation split"),
    ],
)
def test_a_broken_file_of_both_splits_is_a_data_error(tmp_path, document, expected):
    with pytest.raises(DataError) as caught:
        read(written(tmp_path / "both.json", json.dumps(document)))
    assert expected in str(caught.value)


def test_synthetic_data_without_a_persona_are_refused_by_line(tmp_path):
    path = synthetic(tmp_path / "a.csv", "User 1: Hi!\nUser 2: Hello!", personas=("x", " "))
    with pytest.raises(DataError, match=r"a\.csv:2: the dialogue states no persona"):
        read(path)
    assert len(read(path, speaker="user 1").train) == 1


def test_labels_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"task\.labels: personachat has no labels"):
        read(parlai(tmp_path), labels=["a", "b"])


@given(st.lists(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_any_turns_are_read_back_or_refused_with_a_data_error(tmp_path_factory, dialogues):
    path = tmp_path_factory.mktemp("fuzz") / "a.txt"
    blocks = [["your persona: x", *("\t".join(pair) for pair in turns)] for turns in dialogues]
    path.write_text(
        "".join(f"{n} {line}\n" for block in blocks for n, line in enumerate(block, 1)), encoding="utf-8", newline=""
    )
    try:
        task = read(path)
    except DataError:
        assert any(not text.strip() for turns in dialogues for pair in turns for text in pair)
        return
    assert [record.answers[0] for record in task.train] == [reply.strip() for turns in dialogues for _, reply in turns]


def test_a_long_text_file_is_read_line_by_line(tmp_path):
    filler = " ".join(["word"] * 200)
    text = "".join(f"1 your persona: i am {n} .\n2 {filler}\tyes {filler}\n" for n in range(3_000))
    path = parlai(tmp_path, text)
    config = TaskConfig(name="personachat", data={"validation": str(path)}, max_eval=5)
    tracemalloc.start()
    try:
        task = read_task(config, with_train=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1e6 < path.stat().st_size / 5
    assert (len(task.eval), task.counts["validation"]) == (5, {"dialogues": 3_000, "replies": 3_000})
