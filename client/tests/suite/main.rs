//! The client against a broker of its own making, which can be told to misbehave.

mod admin;
mod connection;
mod consumer;
mod failover;
mod fake_broker;
mod fake_producers;
mod idempotence;
mod producer;
