"""A client of the endpoint: cases in, masks and reports out; waits and tries again where the endpoint asks for it."""

from glioray.client.answers import Segmentation as Segmentation
from glioray.client.answers import SuperResolved as SuperResolved
from glioray.client.calls import parse_retry_after as parse_retry_after
from glioray.client.clients import AsyncClient as AsyncClient
from glioray.client.clients import Client as Client
from glioray.client.folder import FolderResult as FolderResult
from glioray.client.sources import SuperResOptions as SuperResOptions
from glioray.engine.serving import Job as Job
