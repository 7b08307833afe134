"""Readers that turn annotation files into grounding examples, one per file format.

Each format is one function with the decorator `annotation_reader`. It yields queries as the file
states them, and `tvg.data.readers.rules` decides which queries are kept or repaired. Defects known
from published files are counted and handled as requested. Any other deviation from the format
raises a ValueError that names the file, the place in it and the value found.
"""

from tvg.data.readers.charades import read_charades as read_charades
from tvg.data.readers.charades_txt import read_charades_txt as read_charades_txt
from tvg.data.readers.jsonl import read_custom as read_custom
from tvg.data.readers.jsonl import read_jsonl as read_jsonl
from tvg.data.readers.reader import Reader as Reader
from tvg.data.readers.reader import annotation_reader as annotation_reader
from tvg.data.readers.record import Defect as Defect
from tvg.data.readers.record import Query as Query
from tvg.data.readers.record import ReadError as ReadError
from tvg.data.readers.record import ReadReport as ReadReport
from tvg.data.readers.record import ReadResult as ReadResult
from tvg.data.readers.rules import read_queries as read_queries
from tvg.data.readers.time_r1 import read_time_r1 as read_time_r1
from tvg.data.readers.timelens import read_timelens_100k as read_timelens_100k
from tvg.data.readers.tvgbench import read_tvgbench as read_tvgbench
