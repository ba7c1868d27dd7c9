//! Turns the bytes of a question into the bytes of an answer, or finds that the
//! host's resolvers must be asked. Pure: sockets and time are in
//! [`server`](super::server) and [`forward`](super::forward).

use std::collections::BTreeMap;

use hickory_proto::op::{
    Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode,
};
use hickory_proto::rr::rdata::{A, PTR, SRV};
use hickory_proto::rr::{DNSClass, Name as DnsName, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use rand::Rng;
use rand::seq::SliceRandom;

use crate::model::NetworkId;

use super::services::Location;
use super::zone::{Found, Zone};

/// How long an answer may be kept, in seconds: a name must not outlive its
/// endpoint by more than a moment.
pub const TTL: u32 = 1;
/// Largest UDP message that this server asks for, in bytes.
const MAX_UDP: u16 = 4096;
const HEADER: usize = 12;

/// What a question came by; it bounds the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// At most 512 bytes, or what the client's EDNS says.
    Udp,
    /// At most 65535 bytes.
    Tcp,
}

/// What to do with what was received.
#[derive(Debug)]
pub enum Action {
    /// Send this back.
    Reply(Vec<u8>),
    /// Ask the host's resolvers.
    Forward(Question),
    /// Nothing that can be answered.
    Ignore,
}

/// A well-formed question.
#[derive(Debug)]
pub struct Question {
    packet: Vec<u8>,
    request: Message,
    /// Where the question section ends in `packet`.
    end: usize,
    /// Largest answer, in bytes.
    limit: usize,
}

/// Answers `packet` for a workload on the networks `asker`.
#[must_use]
pub fn answer(
    packet: &[u8],
    transport: Transport,
    zone: &Zone,
    asker: &[NetworkId],
    rng: &mut impl Rng,
) -> Action {
    let question = match Question::parse(packet, transport) {
        Ok(question) => question,
        Err(reply) => return reply.map_or(Action::Ignore, Action::Reply),
    };
    let asked = &question.request.queries[0];
    let labels: Vec<&[u8]> = asked.name().iter().collect();
    let record = |data| Record::from_rdata(asked.name().clone(), TTL, data);
    let address = |address| RData::A(A(address));
    let is = |kind| [kind, RecordType::ANY].contains(&asked.query_type());
    let (mut records, mut additionals) = (Vec::new(), Vec::new());
    let mut code = ResponseCode::NoError;
    match zone.resolve(&labels, asker) {
        Found::Addresses(mut addresses) if is(RecordType::A) => {
            addresses.shuffle(rng);
            records.extend(addresses.into_iter().map(address).map(record));
        }
        Found::Service { mut addresses, mut locations } => {
            if is(RecordType::A) {
                addresses.shuffle(rng);
                records.extend(addresses.into_iter().map(address).map(record));
            }
            if is(RecordType::SRV) {
                locations.shuffle(rng);
                let mut hosts = BTreeMap::new();
                for Location { host, address, port, weight } in locations {
                    let host = DnsName::from_labels(host.split('.').map(str::as_bytes))
                        .expect("four labels are no more than a name");
                    hosts.insert(host.clone(), address);
                    records.push(record(RData::SRV(SRV::new(0, weight, port, host))));
                }
                let glue = |(host, at)| Record::from_rdata(host, TTL, address(at));
                additionals.extend(hosts.into_iter().map(glue));
            }
        }
        Found::Pointer(name, network) if is(RecordType::PTR) => {
            let labels = [name.as_str().as_bytes(), network.as_str().as_bytes()];
            let target = DnsName::from_labels(labels).expect("two names are no more than a name");
            records.push(record(RData::PTR(PTR(target))));
        }
        Found::Addresses(_) | Found::Pointer(..) | Found::Nothing => {}
        Found::Missing => code = ResponseCode::NXDomain,
        Found::Elsewhere => return Action::Forward(question),
    }
    let mut reply = question.reply(code);
    reply.metadata.authoritative = true;
    reply.answers = records;
    reply.additionals = additionals;
    Action::Reply(fit(reply, question.limit))
}

impl Question {
    /// The error is what to send back, if anything.
    fn parse(packet: &[u8], transport: Transport) -> Result<Self, Option<Vec<u8>>> {
        let mut decoder = BinDecoder::new(packet);
        let header = Header::read(&mut decoder).map_err(|_| None)?;
        if header.metadata.message_type == MessageType::Response {
            return Err(None);
        }
        let refuse = |code| {
            let mut metadata = Metadata::response_from_request(&header.metadata);
            metadata.response_code = code;
            let mut reply = Message::error_msg(metadata.id, metadata.op_code, code);
            reply.metadata = metadata;
            Some(fit(reply, HEADER))
        };
        if header.metadata.op_code != OpCode::Query {
            return Err(refuse(ResponseCode::NotImp));
        }
        if header.counts.queries != 1 {
            return Err(refuse(ResponseCode::FormErr));
        }
        let malformed = |_| refuse(ResponseCode::FormErr);
        let request = Message::from_vec(packet).map_err(malformed)?;
        Query::read(&mut decoder).map_err(malformed)?;
        let limit = match transport {
            Transport::Udp => request.max_payload(),
            Transport::Tcp => u16::MAX,
        };
        let question = Self {
            end: decoder.index(),
            packet: packet.to_vec(),
            limit: usize::from(limit),
            request,
        };
        match question.unsupported() {
            Some(code) => Err(Some(question.failure(code))),
            None => Ok(question),
        }
    }

    /// What this server has no answer to, by the code that says so.
    fn unsupported(&self) -> Option<ResponseCode> {
        let asked = &self.request.queries[0];
        if self.request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Some(ResponseCode::BADVERS);
        }
        let refused = ![DNSClass::IN, DNSClass::ANY].contains(&asked.query_class())
            || [RecordType::AXFR, RecordType::IXFR].contains(&asked.query_type());
        refused.then_some(ResponseCode::Refused)
    }

    /// An answer without records.
    fn reply(&self, code: ResponseCode) -> Message {
        let mut metadata = Metadata::response_from_request(&self.request.metadata);
        metadata.recursion_available = true;
        metadata.response_code = code;
        let mut reply = Message::response(metadata.id, metadata.op_code);
        reply.metadata = metadata;
        reply.queries.clone_from(&self.request.queries);
        reply.edns = self.request.edns.as_ref().map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP);
            edns
        });
        reply
    }

    /// The answer when there is none but this code.
    #[must_use]
    pub fn failure(&self, code: ResponseCode) -> Vec<u8> {
        fit(self.reply(code), self.limit)
    }

    /// The question as it goes to another resolver, with an id of our own.
    #[must_use]
    pub fn forwarded(&self, id: u16) -> Vec<u8> {
        let mut packet = self.packet.clone();
        packet[..2].copy_from_slice(&id.to_be_bytes());
        packet
    }

    /// Whether `response` answers this question as it was sent under `id`. What
    /// does not is somebody else's, or forged.
    #[must_use]
    pub fn is_answered_by(&self, response: &[u8], id: u16) -> bool {
        let Ok(header) = Header::read(&mut BinDecoder::new(response)) else { return false };
        if header.metadata.id != id || header.metadata.message_type != MessageType::Response {
            return false;
        }
        // A server that could not read the question cannot repeat it.
        let failed = header.metadata.response_code != ResponseCode::NoError;
        if header.counts.queries == 0 {
            return failed && header.counts.answers == 0;
        }
        // The name may come back in another case; type and class may not.
        let (asked, repeated) = (&self.packet[HEADER..self.end], response.get(HEADER..self.end));
        let name = asked.len() - 4;
        repeated.is_some_and(|repeated| {
            repeated[..name].eq_ignore_ascii_case(&asked[..name])
                && repeated[name..] == asked[name..]
        })
    }

    /// Makes another resolver's response the answer to the client: as it is if it
    /// fits, else with what fits of it and the mark that it is truncated.
    #[must_use]
    pub fn relay(&self, mut response: Vec<u8>) -> Vec<u8> {
        let id = self.request.metadata.id;
        if response.len() <= self.limit {
            response[..2].copy_from_slice(&id.to_be_bytes());
            return response;
        }
        let mut reply = Message::from_vec(&response)
            .unwrap_or_else(|_| self.reply(ResponseCode::NoError).truncate());
        reply.metadata.id = id;
        reply.metadata.truncation = true;
        fit(reply, self.limit)
    }
}

/// What a resolver's response says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It answers, be it that there is no such name.
    Answer,
    /// It is not whole: the rest is to be had over TCP.
    Truncated,
    /// The resolver cannot or will not say; another may.
    Failure,
}

impl Verdict {
    /// Of a response that [`Question::is_answered_by`] took.
    #[must_use]
    pub fn of(response: &[u8]) -> Self {
        let Ok(Header { metadata, .. }) = Header::read(&mut BinDecoder::new(response)) else {
            return Self::Failure;
        };
        match metadata.response_code {
            ResponseCode::ServFail | ResponseCode::NotImp | ResponseCode::Refused => Self::Failure,
            _ if metadata.truncation => Self::Truncated,
            _ => Self::Answer,
        }
    }
}

/// Encodes in at most `limit` bytes; what does not fit is left out, and the message
/// marked as truncated. A header and its question always fit into 512.
fn fit(mut message: Message, limit: usize) -> Vec<u8> {
    // Records that another resolver sent may be decodable and yet not encodable.
    let fitting = |message: &Message| message.to_vec().ok().filter(|b| b.len() <= limit);
    if let Some(whole) = fitting(&message) {
        return whole;
    }
    message.metadata.truncation = true;
    message.authorities.clear();
    message.additionals.clear();
    let answers = std::mem::take(&mut message.answers);
    let bare = message.to_vec().unwrap_or_default();
    let with = |count: usize| {
        let mut message = message.clone();
        message.answers = answers[..count].to_vec();
        fitting(&message)
    };
    let counts: Vec<usize> = (1..=answers.len()).collect();
    let most = counts.partition_point(|count| with(*count).is_some());
    with(most).unwrap_or(bare)
}

#[cfg(test)]
mod tests;
