//! From a verified request to its handler: one table.
//!
//! Produce and fetch are handled at once, where their bytes lie. Everything else copies its few words
//! and goes on as a task of its own. A request that its client has given up is not done.

use crate::admin;
use crate::connection::{InFlight, Received};
use crate::shard::Shard;
use crate::{fetch, group, produce};
use schema::error_code::ErrorCode;
use schema::wire;
use std::rc::Rc;

/// Hands a request to its handler, which answers through `in_flight`.
pub fn dispatch(
    shard: &Rc<Shard>,
    request: &wire::Request<'_>,
    body: &[u8],
    received: Received,
    in_flight: InFlight,
) {
    use wire::RequestApi as Api;
    let id = request.id();
    if received.is_late(shard.now_ns()) {
        return in_flight.connection().reply_late(id);
    }
    match request.api_type() {
        Api::ProduceRequest => {
            if let Some(produce) = request.api_as_produce_request() {
                produce::handle(shard, id, produce, body, received, in_flight);
            }
        }
        Api::FetchRequest => {
            if let Some(fetch) = request.api_as_fetch_request() {
                fetch::handle(shard, id, fetch, received, in_flight);
            }
        }
        Api::HelloRequest => {
            let text = "this connection has said Hello already";
            in_flight.connection().reply_error(id, ErrorCode::InvalidRequest, text, 0);
        }
        _ => match admin::Request::parse(request) {
            Some(admin) => admin::handle(shard, id, admin, in_flight),
            None => match group::Asked::parse(request) {
                Some(asked) => group::handle(shard, id, asked, in_flight),
                None => {
                    let text = "this broker does not know the request";
                    in_flight.connection().reply_error(id, ErrorCode::Unsupported, text, 0);
                }
            },
        },
    }
}
