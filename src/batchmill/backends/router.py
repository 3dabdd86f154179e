"""Which backends serve a model."""

from collections.abc import Sequence

from batchmill.backends.backend import Backend

__all__ = ["Router"]


class Router:
    """Remembers what each backend last said it serves. In memory only; the rows of known models are the Store's."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        """Begin with backends whose models are not known yet.

        Args:
            backends: In the order in which `serving` lists them. Their names are distinct.
        """
        self._serves: dict[Backend, frozenset[str]] = {backend: frozenset() for backend in backends}

    def add(self, backend: Backend) -> None:
        """Begin with one more, whose models are not known yet."""
        self._serves.setdefault(backend, frozenset())

    def forget(self, backend: Backend) -> None:
        """Go on without one; nothing is asked of it any more.

        Raises:
            KeyError: It is not known.
        """
        del self._serves[backend]

    def learn(self, backend: Backend, models: Sequence[str]) -> None:
        """Take what `backend` says now in place of what it said before.

        Raises:
            KeyError: The router does not know this backend.
        """
        if backend not in self._serves:
            raise KeyError(backend.name)
        self._serves[backend] = frozenset(models)

    def serving(self, model: str) -> tuple[Backend, ...]:
        """The backends that serve `model`, in their given order; () where nobody does."""
        return tuple(backend for backend, models in self._serves.items() if model in models)

    def served_by(self, backend: Backend) -> frozenset[str]:
        """The models that `backend` serves."""
        return self._serves[backend]

    def models(self) -> frozenset[str]:
        """Every model that somebody serves."""
        return frozenset().union(*self._serves.values())
