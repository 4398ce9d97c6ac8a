//! Postgres: connect, migrate, read, listen, report. Decides nothing.
