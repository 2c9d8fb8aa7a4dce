"""What makes records equal, and what the checksum depends on."""

import pickle
from dataclasses import replace

from lorascope.data.record import Record, Segment, checksum

RECORD = Record("7", "train.tsv:9", "a film", label=1)


def test_place_and_id_do_not_make_a_record_another_item():
    assert replace(RECORD, id="8", where="other.tsv:2").content == RECORD.content
    assert replace(RECORD, label=0).content != RECORD.content


def test_records_are_lean_and_survive_pickling():
    record = replace(RECORD, segments=(Segment("a", is_target=True),))
    assert not hasattr(record, "__dict__")
    assert not hasattr(record.segments[0], "__dict__")
    assert pickle.loads(pickle.dumps(record)) == record


def test_checksum_does_not_depend_on_where_the_files_lie():
    assert checksum((), [replace(RECORD, where="elsewhere:1")], []) == checksum((), [RECORD], [])


def test_checksum_depends_on_content_order_split_and_labels():
    other = replace(RECORD, text="another film")
    segments = replace(RECORD, segments=(Segment("a", is_target=True),))
    sums = [
        checksum((), [RECORD, other], []),
        checksum((), [other, RECORD], []),
        checksum((), [RECORD], [other]),
        checksum(("no", "yes"), [RECORD, other], []),
        checksum((), [replace(RECORD, label=0), other], []),
        checksum((), [segments, other], []),
        checksum((), [replace(segments, segments=(Segment("a"),)), other], []),
    ]
    assert len(set(sums)) == len(sums)
    assert all(len(value) == 64 for value in sums)
