"""Answers stand where they are said to, and what has no answer is told nowhere in the passage."""


def test_every_answer_stands_where_it_is_said_to(sets):
    for of in sets.values():
        for passage in of.passages:
            for question in passage.questions:
                assert question.text.endswith("?")
                if question.answer is not None:
                    assert passage.text[question.start :].startswith(question.answer)
                    assert question.answer


def test_a_quarter_or_more_of_the_questions_have_no_answer(sets):
    questions = [question for one in sets["train"].passages for question in one.questions]
    share = sum(question.answer is None for question in questions) / len(questions)
    assert 0.2 < share < 0.5


def test_an_open_question_is_not_also_one_of_the_answered(sets):
    for of in sets.values():
        for passage in of.passages:
            texts = [question.text for question in passage.questions]
            assert len(set(texts)) == len(texts)


def test_passages_are_whole_sentences(sets):
    for passage in sets["validation"].passages:
        assert passage.text.endswith(".")
        assert "{" not in passage.text
        assert 18 < len(passage.text.split()) < 140
