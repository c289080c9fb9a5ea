from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from flq.apps import ClientApp, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flq.apps.mods import ClientAppCallable, make_mod_chain
from flq.errors import AppError


def context() -> Context:
    return Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})


def ask(message_type: str) -> Message:
    return Message(RecordDict({"config": ConfigRecord()}), dst_node_id=2, message_type=message_type)


def saying(word: str) -> ClientAppCallable:
    def handler(msg: Message, _context: Context) -> Message:
        return Message(RecordDict({"said": ConfigRecord({"word": word})}), reply_to=msg)

    return handler


def said(reply: Message) -> object:
    return reply.content["said"]["word"]


def noting(notes: list[str], name: str) -> Callable[[Message, Context, ClientAppCallable], Message]:
    def mod(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
        notes.append(f">{name}")
        reply = call_next(msg, context)
        notes.append(f"<{name}")
        return reply

    return mod


def test_each_message_type_has_its_handler() -> None:
    app = ClientApp()
    app.train()(saying("train"))
    app.evaluate()(saying("evaluate"))
    app.query()(saying("query"))
    app.query("hist")(saying("hist"))
    app.train("warm_up")(saying("warm up"))
    types = ["train", "evaluate", "query", "query.hist", "train.warm_up", "query.default"]
    words = [said(app(ask(message_type), context())) for message_type in types]
    assert words == ["train", "evaluate", "query", "hist", "warm up", "query"]


def test_a_decorator_returns_the_handler() -> None:
    handler = saying("x")
    assert ClientApp().train()(handler) is handler


def test_an_unknown_handler_is_named_with_those_there_are() -> None:
    app = ClientApp()
    app.train()(saying("train"))
    app.query("hist")(saying("hist"))
    with pytest.raises(AppError, match=r"no handler for query\.mean; it has: query\.hist, train") as caught:
        app(ask("query.mean"), context())
    assert caught.value.hint == 'register one with @app.query("mean")'
    with pytest.raises(AppError, match="it has: none"):
        ClientApp()(ask("train"), context())


@pytest.mark.parametrize("returned", [None, 5, RecordDict()])
def test_a_handler_that_returns_no_message_is_named(returned: object) -> None:
    app = ClientApp()

    @app.train()
    def train_it(_msg: Message, _context: Context) -> Message:
        return returned  # type: ignore[return-value]

    with pytest.raises(AppError, match=f"train_it, returned {type(returned).__name__}"):
        app(ask("train"), context())


def test_a_second_handler_for_the_same_type_is_refused() -> None:
    app = ClientApp()
    app.train()(saying("a"))
    with pytest.raises(ValueError, match="handler for train already"):
        app.train()(saying("b"))
    app.train("other")(saying("c"))


@pytest.mark.parametrize("action", ["", "a b", "1", "a.b"])
def test_an_action_is_an_identifier(action: str) -> None:
    with pytest.raises(ValueError, match="no message type"):
        ClientApp().query(action)


def test_forgotten_parentheses_are_pointed_out() -> None:
    with pytest.raises(TypeError, match=r"write @app\.train\(\)"):
        ClientApp().train(saying("x"))  # type: ignore[arg-type]


def test_what_a_handler_raises_comes_through() -> None:
    app = ClientApp()

    @app.train()
    def train(_msg: Message, _context: Context) -> Message:
        raise ZeroDivisionError("by hand")

    with pytest.raises(ZeroDivisionError, match="by hand"):
        app(ask("train"), context())


def test_mods_of_the_app_are_around_those_of_a_handler() -> None:
    notes: list[str] = []
    app = ClientApp(mods=[noting(notes, "a"), noting(notes, "b")])
    app.train(mods=[noting(notes, "c")])(saying("train"))
    app.evaluate()(saying("evaluate"))
    assert said(app(ask("train"), context())) == "train"
    assert notes == [">a", ">b", ">c", "<c", "<b", "<a"]
    notes.clear()
    app(ask("evaluate"), context())
    assert notes == [">a", ">b", "<b", "<a"]


def test_a_mod_may_answer_by_itself_or_change_the_reply() -> None:
    def refuse(msg: Message, _context: Context, _call_next: ClientAppCallable) -> Message:
        return Message(RecordDict({"said": ConfigRecord({"word": "no"})}), reply_to=msg)

    assert said(make_mod_chain(saying("yes"), [refuse])(ask("train"), context())) == "no"
    assert said(make_mod_chain(saying("yes"), [])(ask("train"), context())) == "yes"


def test_state_is_the_handlers_to_change() -> None:
    app = ClientApp()

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        seen = context.state.setdefault("count", MetricRecord({"n": 0}))
        seen["n"] = seen["n"] + 1  # type: ignore[operator, assignment]
        return Message(RecordDict(), reply_to=msg)

    here = context()
    app(ask("train"), here)
    app(ask("train"), here)
    assert here.state["count"]["n"] == 2


class TestLifespan:
    def test_runs_around_each_message(self) -> None:
        notes: list[str] = []
        app = ClientApp(mods=[noting(notes, "mod")])
        app.train()(saying("train"))

        @app.lifespan()
        def lifespan(context: Context) -> Iterator[None]:
            notes.append(f"enter {context.node_id}")
            yield
            notes.append("exit")

        app(ask("train"), context())
        assert notes == ["enter 2", ">mod", "<mod", "exit"]

    def test_ends_when_the_handler_fails(self) -> None:
        notes: list[str] = []
        app = ClientApp()

        @app.lifespan()
        def lifespan(_context: Context) -> Iterator[None]:
            yield
            notes.append("exit")

        @app.train()
        def train(_msg: Message, _context: Context) -> Message:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            app(ask("train"), context())
        assert notes == ["exit"]

    @pytest.mark.parametrize(("times", "told"), [(0, "never yielded"), (2, "yielded twice")])
    def test_yields_exactly_once(self, times: int, told: str) -> None:
        app = ClientApp()
        app.train()(saying("train"))

        @app.lifespan()
        def lifespan(_context: Context) -> Iterator[None]:
            yield from [None] * times

        with pytest.raises(AppError, match=told):
            app(ask("train"), context())

    def test_is_a_generator_and_there_is_one(self) -> None:
        app = ClientApp()
        with pytest.raises(TypeError, match="generator"):
            app.lifespan()(lambda _context: iter([None]))

        @app.lifespan()
        def lifespan(_context: Context) -> Iterator[None]:
            yield

        with pytest.raises(ValueError, match="already"):
            app.lifespan()(lifespan)
