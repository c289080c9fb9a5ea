"""The initial schema: tables, functions, first partitions, views, reader role.

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import UserDefinedType

SQL = Path(__file__).parent.parent / "sql"
ENUMS = ("run_status", "outcome", "attempt_status", "result_status", "process_kind", "object_holder", "step_kind")

WRITTEN_EACH_ROUND = (
    "task", "task_message", "task_attempt", "batch", "step", "checkpoint", "round_metric", "run_attempt",
    "client_state", "object", "object_chunk", "object_ref", "object_pin",
)  # fmt: skip

revision: str = "0001"
down_revision: str | None = None


class Xid8(UserDefinedType[int]):
    """`xid8`, a transaction id that never wraps around."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """The type's name in DDL."""
        return "XID8"


def _now(name: str) -> sa.Column[Any]:
    """A time that is that of the insertion unless it is given."""
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False)


def upgrade() -> None:
    """Go to this revision."""
    op.create_table(
        "bundle",
        sa.Column("bundle_hash", sa.LargeBinary(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        _now("created_at"),
        sa.CheckConstraint("octet_length(bundle_hash) = 32", name=op.f("ck_bundle_sha256")),
        sa.PrimaryKeyConstraint("bundle_hash", name=op.f("pk_bundle")),
        schema="flq_state",
    )
    op.create_table(
        "client_state",
        sa.Column("run_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("node_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("batch_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "node_id", "task_id", name=op.f("pk_client_state")),
        schema="flq_state",
    )
    op.create_table(
        "log_line",
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("line_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.PrimaryKeyConstraint("at", "line_id", name=op.f("pk_log_line")),
        schema="flq_state",
        postgresql_partition_by="RANGE (at)",
    )
    op.create_index(op.f("ix_log_line_run_id_xid"), "log_line", ["run_id", "xid"], unique=False, schema="flq_state")
    op.create_table(
        "maintenance_run",
        sa.Column("maintenance_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        _now("at"),
        sa.Column("duration", sa.Interval(), nullable=False),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("maintenance_id", name=op.f("pk_maintenance_run")),
        schema="flq_state",
        postgresql_with={"fillfactor": 50},
    )
    op.create_index(
        "uq_maintenance_run_idle",
        "maintenance_run",
        ["name"],
        unique=True,
        schema="flq_state",
        postgresql_where=sa.text("done = 0 AND error IS NULL"),
    )
    op.create_table(
        "object",
        sa.Column("object_hash", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("directory", sa.Text(), nullable=True),
        _now("created_at"),
        sa.CheckConstraint("octet_length(object_hash) = 32", name=op.f("ck_object_sha256")),
        sa.CheckConstraint("size >= 0", name=op.f("ck_object_size_not_negative")),
        sa.PrimaryKeyConstraint("object_hash", name=op.f("pk_object")),
        schema="flq_state",
    )
    op.create_table(
        "object_chunk",
        sa.Column("object_hash", sa.LargeBinary(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("object_hash", "sequence", name=op.f("pk_object_chunk")),
        schema="flq_state",
    )
    op.create_table(
        "object_pin",
        sa.Column("object_hash", sa.LargeBinary(), nullable=False),
        sa.Column("pinned_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("object_hash", name=op.f("pk_object_pin")),
        schema="flq_state",
    )
    op.create_index(
        op.f("ix_object_pin_pinned_until"), "object_pin", ["pinned_until"], unique=False, schema="flq_state"
    )
    op.create_table(
        "object_upload",
        sa.Column("object_hash", sa.LargeBinary(), nullable=False),
        sa.Column("directory", sa.Text(), nullable=True),
        _now("touched_at"),
        sa.PrimaryKeyConstraint("object_hash", name=op.f("pk_object_upload")),
        schema="flq_state",
    )
    op.create_index(
        op.f("ix_object_upload_touched_at"), "object_upload", ["touched_at"], unique=False, schema="flq_state"
    )
    op.create_table(
        "process",
        sa.Column("process_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column(
            "kind",
            sa.Enum("superlink", "supernode", "superexec", name="process_kind", schema="flq_state"),
            nullable=False,
        ),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        _now("started_at"),
        sa.Column("alive_until", sa.DateTime(timezone=True), server_default=sa.text("'-infinity'"), nullable=False),
        sa.Column("consumed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("jobs_missed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("consumer_restarts", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint("slots >= 0", name=op.f("ck_process_slots_not_negative")),
        sa.CheckConstraint(
            "jobs_missed >= 0 AND consumer_restarts >= 0", name=op.f("ck_process_consumption_not_negative")
        ),
        sa.PrimaryKeyConstraint("process_id", name=op.f("pk_process")),
        schema="flq_state",
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "result",
        sa.Column("batch_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("node_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "status",
            sa.Enum("ok", "error", "expired", "cancelled", name="result_status", schema="flq_state"),
            nullable=False,
        ),
        sa.Column("error_code", sa.SmallInteger(), nullable=True),
        sa.Column("error_text", sa.Text(), nullable=True),
        sa.Column("manifest", sa.LargeBinary(), nullable=True),
        sa.Column(
            "metrics", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("payload_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column("process_id", sa.UUID(as_uuid=False), nullable=True),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        _now("ended_at"),
        sa.Column("xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.CheckConstraint("(status = 'ok') = (error_code IS NULL)", name=op.f("ck_result_error_code_unless_ok")),
        sa.CheckConstraint("(status = 'ok') = (manifest IS NOT NULL)", name=op.f("ck_result_manifest_iff_ok")),
        sa.PrimaryKeyConstraint("batch_id", "task_id", name=op.f("pk_result")),
        schema="flq_state",
        postgresql_partition_by="RANGE (batch_id)",
    )
    op.create_index(op.f("ix_result_batch_id_xid"), "result", ["batch_id", "xid"], unique=False, schema="flq_state")
    op.create_table(
        "setting",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        _now("changed_at"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_setting")),
        schema="flq_state",
    )
    op.create_table(
        "task",
        sa.Column("node_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("batch_id", sa.BigInteger(), nullable=False),
        sa.Column("token", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempt", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("process_id", sa.UUID(as_uuid=False), nullable=True),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), server_default=sa.text("'-infinity'"), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "run_id", "task_id", name=op.f("pk_task")),
        schema="flq_state",
        postgresql_with={
            "fillfactor": 50,
            "autovacuum_vacuum_scale_factor": 0.02,
            "autovacuum_vacuum_threshold": 1000,
            "autovacuum_vacuum_cost_delay": 0,
        },
    )
    op.create_index(op.f("ix_task_batch_id"), "task", ["batch_id"], unique=False, schema="flq_state")
    op.create_table(
        "task_attempt",
        sa.Column("task_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("node_id", sa.BigInteger(), nullable=False),
        sa.Column("process_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False),
        _now("ended_at"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("task_id", "attempt", name=op.f("pk_task_attempt")),
        schema="flq_state",
    )
    op.create_table(
        "task_message",
        sa.Column("batch_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("task_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "task_id", name=op.f("pk_task_message")),
        schema="flq_state",
    )
    op.create_table(
        "node",
        sa.Column("node_id", sa.BigInteger(), sa.Identity(always=True, start=2), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=True),
        sa.Column(
            "config", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column(
            "labels", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("process_id", sa.UUID(as_uuid=False), nullable=True),
        sa.Column("epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        _now("created_at"),
        sa.Column("connected_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("name <> ''", name=op.f("ck_node_name_not_empty")),
        sa.CheckConstraint("node_id > 1", name=op.f("ck_node_one_is_the_superlink")),
        sa.ForeignKeyConstraint(["process_id"], ["flq_state.process.process_id"], name=op.f("fk_node_process_id")),
        sa.PrimaryKeyConstraint("node_id", name=op.f("pk_node")),
        sa.UniqueConstraint("name", name=op.f("uq_node_name")),
        schema="flq_state",
    )
    op.create_index(op.f("ix_node_process_id"), "node", ["process_id"], unique=False, schema="flq_state")
    op.create_table(
        "object_ref",
        sa.Column("object_hash", sa.LargeBinary(), nullable=False),
        sa.Column(
            "holder",
            sa.Enum("batch", "result", "checkpoint", "artifact", name="object_holder", schema="flq_state"),
            nullable=False,
        ),
        sa.Column("holder_id", sa.BigInteger(), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["object_hash"], ["flq_state.object.object_hash"], name=op.f("fk_object_ref_object_hash")
        ),
        sa.PrimaryKeyConstraint("object_hash", "holder", "holder_id", name=op.f("pk_object_ref")),
        schema="flq_state",
    )
    op.create_index(
        "ix_object_ref_holder", "object_ref", ["run_id", "holder", "holder_id"], unique=False, schema="flq_state"
    )
    op.create_table(
        "run",
        sa.Column("run_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("app", sa.Text(), nullable=False),
        sa.Column("bundle_hash", sa.LargeBinary(), nullable=False),
        sa.Column(
            "config", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("node_selector", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'::text[]"), nullable=False),
        sa.Column("min_nodes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("priority", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("weight", sa.Double(), server_default=sa.text("1"), nullable=False),
        sa.Column("wall_time_limit", sa.Interval(), nullable=True),
        sa.Column("max_open_tasks", sa.BigInteger(), nullable=True),
        sa.Column("max_bytes", sa.BigInteger(), nullable=True),
        sa.Column("keep_replies", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("keep_checkpoints", sa.Integer(), nullable=True),
        sa.Column("rounds_planned", sa.Integer(), nullable=True),
        sa.Column(
            "status",
            sa.Enum("pending", "starting", "running", "finished", name="run_status", schema="flq_state"),
            server_default=sa.text("'pending'"),
            nullable=False,
        ),
        sa.Column(
            "outcome", sa.Enum("completed", "failed", "stopped", name="outcome", schema="flq_state"), nullable=True
        ),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempt_token", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("branch", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("stop_requested_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("forked_from", sa.BigInteger(), nullable=True),
        sa.Column("forked_from_round", sa.Integer(), nullable=True),
        sa.Column("rerun_of", sa.BigInteger(), nullable=True),
        sa.Column("excused_attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("active_time", sa.Interval(), server_default=sa.text("'00:00:00'"), nullable=False),
        _now("created_at"),
        sa.Column("starting_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("running_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("pruned_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(attempt_token <> 0) = (status IN ('starting', 'running'))", name=op.f("ck_run_token_iff_active")
        ),
        sa.CheckConstraint(
            "(outcome IN ('failed', 'stopped')) IS NOT TRUE OR reason IS NOT NULL", name=op.f("ck_run_reason_if_cut")
        ),
        sa.CheckConstraint(
            "(status = 'finished') = (finished_at IS NOT NULL)", name=op.f("ck_run_finished_at_iff_finished")
        ),
        sa.CheckConstraint("(status = 'finished') = (outcome IS NOT NULL)", name=op.f("ck_run_outcome_iff_finished")),
        sa.CheckConstraint("name ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name=op.f("ck_run_name_form")),
        sa.CheckConstraint("pruned_at IS NULL OR status = 'finished'", name=op.f("ck_run_pruned_if_finished")),
        sa.CheckConstraint("forked_from_round IS NOT NULL OR forked_from IS NULL", name=op.f("ck_run_round_if_forked")),
        sa.CheckConstraint("status <> 'running' OR running_at IS NOT NULL", name=op.f("ck_run_running_at_if_running")),
        sa.CheckConstraint(
            "status NOT IN ('starting', 'running') OR starting_at IS NOT NULL", name=op.f("ck_run_starting_at_if_begun")
        ),
        sa.CheckConstraint("keep_checkpoints >= 0", name=op.f("ck_run_keep_checkpoints_not_negative")),
        sa.CheckConstraint("max_open_tasks > 0 AND max_bytes > 0", name=op.f("ck_run_quotas_positive")),
        sa.CheckConstraint("min_nodes >= 0", name=op.f("ck_run_min_nodes_not_negative")),
        sa.CheckConstraint("weight > 0", name=op.f("ck_run_weight_positive")),
        sa.ForeignKeyConstraint(["bundle_hash"], ["flq_state.bundle.bundle_hash"], name=op.f("fk_run_bundle_hash")),
        sa.ForeignKeyConstraint(["forked_from"], ["flq_state.run.run_id"], name=op.f("fk_run_forked_from")),
        sa.ForeignKeyConstraint(["rerun_of"], ["flq_state.run.run_id"], name=op.f("fk_run_rerun_of")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_run")),
        sa.UniqueConstraint("name", name=op.f("uq_run_name")),
        sa.UniqueConstraint("owner", "idempotency_key", name=op.f("uq_run_owner_idempotency_key")),
        schema="flq_state",
    )
    op.create_index(
        "ix_run_unfinished",
        "run",
        ["priority", "run_id"],
        unique=False,
        schema="flq_state",
        postgresql_where=sa.text("status <> 'finished'"),
    )
    op.create_table(
        "artifact",
        sa.Column("artifact_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("object_hash", sa.LargeBinary(), nullable=False),
        _now("created_at"),
        sa.CheckConstraint("name <> ''", name=op.f("ck_artifact_name_not_empty")),
        sa.ForeignKeyConstraint(
            ["object_hash"], ["flq_state.object.object_hash"], name=op.f("fk_artifact_object_hash")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["flq_state.run.run_id"], name=op.f("fk_artifact_run_id")),
        sa.PrimaryKeyConstraint("artifact_id", name=op.f("pk_artifact")),
        sa.UniqueConstraint("run_id", "name", name=op.f("uq_artifact_run_id_name")),
        schema="flq_state",
    )
    op.create_table(
        "batch",
        sa.Column("batch_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("branch", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=True),
        sa.Column("tasks", sa.Integer(), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("manifest", sa.LargeBinary(), nullable=True),
        _now("created_at"),
        sa.CheckConstraint("tasks > 0", name=op.f("ck_batch_has_tasks")),
        sa.ForeignKeyConstraint(["run_id"], ["flq_state.run.run_id"], name=op.f("fk_batch_run_id")),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("pk_batch")),
        sa.UniqueConstraint("run_id", "branch", "sequence", name=op.f("uq_batch_run_id_branch_sequence")),
        schema="flq_state",
    )
    op.create_index(op.f("ix_batch_run_id_round"), "batch", ["run_id", "round"], unique=False, schema="flq_state")
    op.create_table(
        "checkpoint",
        sa.Column("checkpoint_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("branch", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("next_sequence", sa.BigInteger(), nullable=False),
        sa.Column("first_sequence", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.LargeBinary(), nullable=True),
        sa.Column(
            "metrics", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        _now("committed_at"),
        sa.CheckConstraint("round >= 0", name=op.f("ck_checkpoint_round_not_negative")),
        sa.ForeignKeyConstraint(["run_id"], ["flq_state.run.run_id"], name=op.f("fk_checkpoint_run_id")),
        sa.PrimaryKeyConstraint("checkpoint_id", name=op.f("pk_checkpoint")),
        sa.UniqueConstraint("run_id", "round", name=op.f("uq_checkpoint_run_id_round")),
        schema="flq_state",
    )
    op.create_table(
        "node_list",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("list_hash", sa.LargeBinary(), nullable=False),
        sa.Column("nodes", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["flq_state.run.run_id"], name=op.f("fk_node_list_run_id")),
        sa.PrimaryKeyConstraint("run_id", "list_hash", name=op.f("pk_node_list")),
        schema="flq_state",
    )
    op.create_table(
        "step",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("branch", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Enum("push", "checkpoint", name="step_kind", schema="flq_state"), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column(
            "delivered", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'::jsonb"), nullable=False
        ),
        _now("made_at"),
        sa.ForeignKeyConstraint(["run_id"], ["flq_state.run.run_id"], name=op.f("fk_step_run_id")),
        sa.PrimaryKeyConstraint("run_id", "branch", "sequence", name=op.f("pk_step")),
        schema="flq_state",
    )
    op.create_table(
        "round_metric",
        sa.Column("metric_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("node_id", sa.BigInteger(), nullable=True),
        sa.Column("value", sa.Double(), nullable=False),
        _now("recorded_at"),
        sa.CheckConstraint("round >= 0", name=op.f("ck_round_metric_round_not_negative")),
        sa.ForeignKeyConstraint(["node_id"], ["flq_state.node.node_id"], name=op.f("fk_round_metric_node_id")),
        sa.ForeignKeyConstraint(["run_id"], ["flq_state.run.run_id"], name=op.f("fk_round_metric_run_id")),
        sa.PrimaryKeyConstraint("metric_id", name=op.f("pk_round_metric")),
        sa.UniqueConstraint(
            "run_id",
            "round",
            "name",
            "node_id",
            name=op.f("uq_round_metric_run_id_round_name_node_id"),
            postgresql_nulls_not_distinct=True,
        ),
        schema="flq_state",
    )
    op.create_table(
        "run_attempt",
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.Column(
            "status",
            sa.Enum("published", "claimed", "ended", name="attempt_status", schema="flq_state"),
            server_default=sa.text("'published'"),
            nullable=False,
        ),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("publications", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("process_id", sa.UUID(as_uuid=False), nullable=True),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), server_default=sa.text("'-infinity'"), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        _now("published_at"),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(status = 'ended') = (ended_at IS NOT NULL)", name=op.f("ck_run_attempt_ended_at_iff_ended")
        ),
        sa.CheckConstraint(
            "status <> 'claimed' OR process_id IS NOT NULL", name=op.f("ck_run_attempt_process_if_claimed")
        ),
        sa.CheckConstraint(
            "(process_id IS NULL) = (claimed_at IS NULL)", name=op.f("ck_run_attempt_claimed_at_iff_process")
        ),
        sa.ForeignKeyConstraint(
            ["process_id"], ["flq_state.process.process_id"], name=op.f("fk_run_attempt_process_id")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["flq_state.run.run_id"], name=op.f("fk_run_attempt_run_id")),
        sa.PrimaryKeyConstraint("run_id", "attempt", name=op.f("pk_run_attempt")),
        schema="flq_state",
    )
    op.create_index(
        "ix_run_attempt_open",
        "run_attempt",
        ["status"],
        unique=False,
        schema="flq_state",
        postgresql_where=sa.text("status <> 'ended'"),
    )
    op.create_table(
        "run_event",
        sa.Column("event_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        _now("at"),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column(
            "details", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("xid", Xid8(), server_default=sa.text("pg_current_xact_id()"), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["flq_state.run.run_id"], name=op.f("fk_run_event_run_id")),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_run_event")),
        schema="flq_state",
    )
    op.create_index(
        op.f("ix_run_event_run_id_event_id"), "run_event", ["run_id", "event_id"], unique=False, schema="flq_state"
    )
    for table, column in (("object_chunk", "data"), ("bundle", "data")):
        op.execute(f"ALTER TABLE flq_state.{table} ALTER COLUMN {column} SET STORAGE EXTERNAL")
    op.execute((SQL / "0001_functions.sql").read_text(encoding="utf-8"))
    for table in WRITTEN_EACH_ROUND:
        op.execute(f"SELECT flq_state.analyze_when_doubled('{table}')")
    op.execute("SELECT flq_state.make_partitions()")
    op.execute((SQL / "0001_views.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    """Go back to the one before. Indexes go with their tables."""
    op.execute("DROP SCHEMA flq CASCADE")
    op.execute("DROP FUNCTION flq_state.make_partitions")
    op.execute("DROP FUNCTION flq_state.analyze_when_doubled")
    op.execute("DROP FUNCTION flq_state.first_names")
    op.drop_table("run_event", schema="flq_state")
    op.drop_table("run_attempt", schema="flq_state")
    op.drop_table("round_metric", schema="flq_state")
    op.drop_table("step", schema="flq_state")
    op.drop_table("node_list", schema="flq_state")
    op.drop_table("checkpoint", schema="flq_state")
    op.drop_table("batch", schema="flq_state")
    op.drop_table("artifact", schema="flq_state")
    op.drop_table("run", schema="flq_state")
    op.drop_table("object_ref", schema="flq_state")
    op.drop_table("node", schema="flq_state")
    op.drop_table("task_message", schema="flq_state")
    op.drop_table("task_attempt", schema="flq_state")
    op.drop_table("task", schema="flq_state")
    op.drop_table("setting", schema="flq_state")
    op.drop_table("result", schema="flq_state")
    op.drop_table("process", schema="flq_state")
    op.drop_table("object_upload", schema="flq_state")
    op.drop_table("object_pin", schema="flq_state")
    op.drop_table("object_chunk", schema="flq_state")
    op.drop_table("object", schema="flq_state")
    op.drop_table("maintenance_run", schema="flq_state")
    op.drop_table("log_line", schema="flq_state")
    op.drop_table("client_state", schema="flq_state")
    op.drop_table("bundle", schema="flq_state")
    for name in ENUMS:
        op.execute(f"DROP TYPE flq_state.{name}")
