"""Where records come from: files of any kind, saved data sets, a hub, chats; and how a million of them are held."""

from __future__ import annotations

from dpzo.data.chats import ASSISTANT, MESSAGES, own_chat
from dpzo.data.hub import parse_hub
from dpzo.data.reading import read_records
from dpzo.data.sources import open_table

__all__ = ["ASSISTANT", "MESSAGES", "open_table", "own_chat", "parse_hub", "read_records"]
