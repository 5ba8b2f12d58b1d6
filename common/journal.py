"""A list of what was made in other people's services and must be taken back, on disk before it is made.

An entry is written before the call that makes the thing, and taken out after the call that removes it. So whatever
instant the process dies, the next one knows of everything that may exist.
"""

import threading
from typing import Any

from common.failure import Usage
from common.state import State

Entry = dict[str, Any]


class Journal:
    """Entries in one JSON file of the state folder; safe to use from several threads.

    facts: what every entry says, such as "zone"; Usage when the file has an entry that does not
    """

    def __init__(self, state: State, name: str, written_by: str, *facts: str) -> None:
        self._state, self._name = state, name
        self._lock = threading.Lock()
        self._entries: list[Entry] = (
            state.read_json(name, written_by, entries=list)["entries"] if state.exists(name) else []
        )
        for entry in self._entries:
            known = isinstance(entry, dict) and entry.keys() >= set(facts)
            if not known or not all(isinstance(fact, str) for fact in entry.values()):
                raise Usage(
                    f"{state.path(name)} is damaged: it has no usable entries",
                    f"move it away and run {written_by} again",
                )

    def entries(self) -> list[Entry]:
        with self._lock:
            return list(self._entries)

    def begin(self, **facts: str) -> tuple[Entry, bool]:
        """The entry with these facts, and whether an earlier run began it; a new one is on disk on return."""
        with self._lock:
            for entry in self._entries:
                if facts.items() <= entry.items():
                    return entry, True
            entry = dict(facts)
            self._entries.append(entry)
            self._save()
            return entry, False

    def complete(self, entry: Entry, **facts: str) -> None:
        """Add what only the service could say, such as the id it gave."""
        with self._lock:
            entry.update(facts)
            self._save()

    def end(self, entry: Entry) -> None:
        """The thing is gone, or was never made. With the last entry the file goes too."""
        with self._lock:
            self._entries.remove(entry)
            self._save()

    def _save(self) -> None:
        if self._entries:
            self._state.write_json(self._name, {"entries": self._entries})
        else:
            self._state.remove(self._name)
