"""The page under /mlmeta/ and what it is made of."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(prefix="/mlmeta", tags=["the page"])
