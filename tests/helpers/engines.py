"""An engine that does the pieces in this process, in an order of its own, and dies where a test wants a driver to."""

from alip.errors import UserError


class InTurn:
    """dies(name of the function, piece): raises where a driver is to die. order: of the pieces. calls: (name, first
    value of the piece) of all that were done."""

    def __init__(self, dies=lambda function, piece: False, order=reversed):
        self.dies, self.order, self.calls = dies, order, []

    def run(self, function, job, pieces, last_try=None):
        return self._each(function.__name__, lambda *piece: function(job, *piece), pieces)

    def run_workers(self, factory, job, pieces, device="cpu"):
        worker = factory(job) if pieces else None
        return self._each(factory.__name__, worker, pieces)

    def _each(self, name, function, pieces):
        for piece in self.order(list(pieces)):
            if self.dies(name, piece):
                raise KeyboardInterrupt
            self.calls.append((name, piece[0]))
            try:
                yield piece, function(*piece)
            except UserError as error:
                yield piece, error
