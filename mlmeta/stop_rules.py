"""The rules by which a training may stop before its last epoch, as train commands name them.

Deciding by them is the work of `mlmeta.stopping`.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

After: TypeAlias = Annotated[float, Field(ge=0, le=1, description="share of n_epoch before which nothing stops")]


class _Rule(BaseModel):
    """What all rules share."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class MedianRule(_Rule):
    """Stops a training that is below the median of past attempts on its task (Golovin et al., Google Vizier, 2017)."""

    rule: Literal["median"] = Field(description="stop below the median of past attempts on this task at that epoch")
    after: After = 0.25
    min_attempts: int = Field(5, ge=1, le=1_000_000, description="of fewer past attempts there is no median")


class TopFractionRule(_Rule):
    """Stops a training that is not among the best past attempts on its task."""

    rule: Literal["top_fraction"] = Field(
        description="stop unless among the best of past attempts on this task at that epoch"
    )
    after: After = 0.25
    fraction: float = Field(0.2, gt=0, le=1, description="the share of attempts that goes on")
    min_attempts: int = Field(5, ge=1, le=1_000_000, description="among fewer past attempts none is stopped")


class CurveRule(_Rule):
    """Stops a training that will hardly beat the best past attempt on its task, as past learning curves go."""

    rule: Literal["curve"] = Field(
        description="stop where the predicted curve is unlikely to beat the best past attempt on this task"
    )
    after: After = 0.25
    probability: float = Field(0.05, ge=0, le=1, description="the chance to become the best below which it stops")


StopRule: TypeAlias = MedianRule | TopFractionRule | CurveRule
