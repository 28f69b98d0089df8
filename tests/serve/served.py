"""A small model behind the server, in this process."""

import contextlib
import functools
import socket
import threading
import time

import openai
import uvicorn

from m1jax import model
from m1jax.generate import LanguageModel
from m1jax.generate.room import Limits
from m1jax.serve import Served, Settings, make
from m1jax.tokenizer import chat, train
from tests.model import small

TEXT = "Asthma is a disease of the airways. 哮喘是气道的疾病。 "
NAME = "tiny/asthma"


@functools.cache
def tokenizer():
    return train(iter([TEXT * 5] * 4), 420)


@functools.cache
def language_model():
    config = small.config(vocab_size=tokenizer().vocab_size, num_layers=2, max_positions=512)
    return LanguageModel(config, small.BASE, model.create(config, 0)[1])


def served(limits=None, **settings):
    limits = Limits(**{"max_batch": 4, "chunk": 64, **(limits or {})})
    talk = chat.of(tokenizer())
    engine = language_model().online(limits)
    ends = (tokenizer().eos_id,)
    return Served(NAME, engine, tokenizer(), talk, ends, card="Read about asthma.", settings=Settings(**settings))


@contextlib.contextmanager
def running(limits=None, **settings):
    """A server at a port of this machine; gives the address and what is served."""
    what = served(limits, **settings)
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make(what), log_config=None, access_log=False, http="h11", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}", what
    finally:
        server.should_exit = True
        thread.join()


def client_of(address, **settings):
    return openai.OpenAI(base_url=f"{address}/v1", **{"api_key": "none", "max_retries": 0, **settings})


def until(condition, seconds=20.0):
    """Waits for what other threads bring about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)
