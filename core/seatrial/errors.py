"""What can go wrong, as types that carry facts.

Knows nothing of HTTP, gRPC or exit codes: each door and the CLI shell hold one table that maps these types.

SeatrialError
├── BadRequest           the caller can fix it
│   ├── MalformedRequest     not JSON, a truncated tensor, a length that does not add up
│   ├── WrongInput           a name, datatype or shape that the model does not take
│   ├── NonFinite            a number that the tensor cannot hold
│   ├── TooLarge             a body, header or tensor over its limit
│   ├── UnsupportedEncoding  a content type or encoding that the server does not speak
│   ├── Unauthenticated      nobody knows who asks: no key, or one that is wrong, expired or revoked
│   ├── Forbidden            the server's settings, or the caller's rights, do not allow it
│   └── UnknownModel         no model, version or alias of that name is served
├── Refused              try again later
│   ├── Overloaded           the queue is full
│   ├── QuotaExceeded        this caller has asked for more than its share
│   ├── NotReady             starting, draining, or no engine is up
│   ├── NotEnoughMemory      a new version does not fit beside the old one
│   ├── Busy                 somebody else has what is for one at a time
│   └── DeadlinePassed       the answer would have come too late
├── Broken               somebody must look
│   ├── EngineFailed         the engine raised, died or answered nonsense
│   ├── BundleCorrupt        a digest, size or file of a bundle does not hold
│   ├── GoldenMismatch       this machine answers differently from where the bundle was built
│   ├── LedgerBroken         an entry of the ledger was changed or removed
│   └── ConversionFailed     a child process that converts or measures did not deliver
├── Misused              the command, the settings or the surroundings must change
│   ├── InvalidSettings, InvalidRecipe, InvalidSource
│   ├── MissingExtra         an optional dependency is not installed
│   ├── EngineUnavailable    this machine has not got what the bundle needs
│   ├── PortInUse, DiskFull
│   ├── DataMissing          a data set is not where the settings say
│   ├── RegistryUnreachable  MLflow did not answer
│   ├── AgentLost            the agent that measures elsewhere does not answer, or no longer
│   ├── AgentRefused         it answers, and does not let us in or do what it is asked
│   ├── NotInRegistry        a model, version, alias or tag that MLflow does not have
│   └── Untrusted            opening it would run somebody's code
└── NotAdmitted          a decision, not a fault
    ├── BudgetNotMet         no variant met the whole budget
    └── GateFailed           a promotion gate said no
"""


class SeatrialError(Exception):
    """Base of all errors that we raise on purpose. The message is written for the person who reads it."""


class BadRequest(SeatrialError):
    """The caller can fix it."""


class MalformedRequest(BadRequest):
    pass


class WrongInput(BadRequest):
    pass


class NonFinite(BadRequest):
    pass


class TooLarge(BadRequest):
    pass


class UnsupportedEncoding(BadRequest):
    pass


class Unauthenticated(BadRequest):
    pass


class Forbidden(BadRequest):
    pass


class UnknownModel(BadRequest):
    pass


class Refused(SeatrialError):
    """Nothing is wrong with the request; the same one may succeed later."""


class Overloaded(Refused):
    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaExceeded(Refused):
    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(Refused):
    pass


class NotEnoughMemory(Refused):
    pass


class Busy(Refused):
    pass


class DeadlinePassed(Refused):
    pass


class Broken(SeatrialError):
    """Neither the caller nor time will mend it."""


class EngineFailed(Broken):
    pass


class BundleCorrupt(Broken):
    pass


class GoldenMismatch(Broken):
    pass


class LedgerBroken(Broken):
    pass


class ConversionFailed(Broken):
    """`command` runs the child again, by hand; what it said the first time is in `log`."""

    def __init__(self, reason: str, *, log: str = "", command: str = "") -> None:
        super().__init__(f"{reason}\nits log: {log}\nrun it again: {command}" if command else reason)
        self.reason, self.log, self.command = reason, log, command


class Misused(SeatrialError):
    """The command, the settings or the surroundings must change."""


class InvalidSettings(Misused):
    pass


class InvalidRecipe(Misused):
    pass


class InvalidSource(Misused):
    pass


class MissingExtra(Misused):
    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f"the Python package '{package}' is not installed; pip install 'seatrial[{extra}]' brings it")
        self.package, self.extra = package, extra


class EngineUnavailable(Misused):
    pass


class PortInUse(Misused):
    pass


class DiskFull(Misused):
    pass


class DataMissing(Misused):
    pass


class RegistryUnreachable(Misused):
    pass


class AgentLost(Misused):
    pass


class AgentRefused(Misused):
    pass


class NotInRegistry(Misused):
    pass


class Untrusted(Misused):
    pass


class NotAdmitted(SeatrialError):
    """The work was done and the verdict is no."""


class BudgetNotMet(NotAdmitted):
    pass


class GateFailed(NotAdmitted):
    pass
