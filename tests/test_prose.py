"""Sentences of prose, in the scripts that BERT is trained on."""

import pytest

from attn_jax.data.prose import split_sentences

# Language: sentences, joined by what stands between them.
TEXTS = {
    "German": (
        " ",
        ["Das ist gut so.", "Über den Wolken ist es frei.", "Ärger war da."],
    ),
    "Russian": (
        " ",
        ["Это первое предложение.", "Жил был старик.", "Вот и всё, конец."],
    ),
    "Greek": (" ", ["Αυτή είναι η πρώτη.", "Ήταν μια φορά ένας γέρος."]),
    "Chinese": ("", ["我今天去了学校。", "他说：“你好吗？”", "我回答说很好！"]),
    "Japanese": ("", ["彼は学校に行きました。", "「はい、そうです。」"]),
    "Hindi": (" ", ["यह पहला वाक्य है।", "यह दूसरा वाक्य है।", "क्या यह ठीक है?"]),
    "Arabic": (" ", ["هل هذا سؤال جيد؟", "نعم هذا سؤال جيد.", "وهذه جملة أخرى هنا."]),
    "French": (" ", ["«Ça va bien ici.»", "«Étienne est parti hier.»"]),
    "Spanish": (" ", ["¿Dónde estás tú ahora?", "¡Ábrelo ahora mismo ya!"]),
    "English": (
        " ",
        ['He said "Stop it now."', "Then (or so) he left it.", "So it was."],
    ),
}


@pytest.mark.parametrize("language", TEXTS)
def test_sentences_end_where_those_of_their_language_do(language):
    between, sentences = TEXTS[language]
    assert list(split_sentences(between.join(sentences))) == sentences


def test_a_lower_case_letter_or_a_number_begins_no_sentence():
    text = "Он заплатил 3.5 рубля... потом ушёл. 12 человек пришли, т.е. все они."
    assert list(split_sentences(text)) == [text]


def test_version_2_ends_sentences_before_a_to_z_only():
    text = "Das ist gut so. Über den Wolken ist es. So ist es eben."
    found = list(split_sentences(text, version=2))
    assert found == ["Das ist gut so. Über den Wolken ist es.", "So ist es eben."]


def test_what_is_no_prose_is_left_out_in_every_script():
    assert not list(split_sentences("是。\n\n１２３４５６７８９。一二"))
    assert not list(split_sentences("Да нет.\n\n=====\n\n1 2 3 4 5 Ж Я"))
