use std::thread::{JoinHandle, spawn};

use super::super::message::{NLMSG_DONE, NLMSG_ERROR};
use super::*;

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../../../tests/support/fault.rs"]
mod fault;

/// One message of the scripted kernel.
#[derive(Clone)]
struct Answer {
    kind: u16,
    flags: u16,
    /// Which sequence number it has, counted from that of the request.
    offset: u32,
    /// How many bytes are cut off its end.
    cut: usize,
    payload: Vec<u8>,
}

impl Answer {
    fn encode(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        let sequence = sequence.wrapping_add(self.offset);
        put_message(&mut bytes, self.kind, self.flags, sequence, |out| {
            out.extend_from_slice(&self.payload);
        });
        bytes.truncate(bytes.len() - self.cut);
        bytes
    }
}

/// A kernel that answers each request with the messages of a script, each in a datagram, over the
/// protocol that the kernel keeps for processes to speak with each other. Ends with its script, and
/// returns how many requests it had.
fn scripted(script: Vec<Vec<Answer>>) -> (Channel, JoinHandle<usize>) {
    let protocol = netlink_sys::protocols::NETLINK_USERSOCK;
    let mut kernel = Socket::new(protocol).unwrap();
    let address = kernel.bind_auto().unwrap();
    let mut socket = Socket::new(protocol).unwrap();
    let port = bind(&mut socket, SOCKET_BUFFER_BYTES).unwrap();
    socket.connect(&address).unwrap();
    let channel =
        Channel { socket, port, sequence: 0, outgoing: Vec::new(), incoming: buffer(), filled: 0 };
    let answer = move || {
        let mut requests = 0;
        for answers in script {
            let (request, from) = kernel.recv_from_full().unwrap();
            requests += 1;
            let sequence = u32::from_ne_bytes(request[8..12].try_into().unwrap());
            for answer in answers {
                kernel.send_to(&answer.encode(sequence), &from, 0).unwrap();
            }
        }
        requests
    };
    (channel, spawn(answer))
}

const REQUEST: Encoded<'static> = Encoded { kind: 16, body: &[0; 4] };

fn numbers(channel: &mut Channel) -> Result<Vec<u8>, NetlinkError> {
    channel.dump(&REQUEST, |numbers: &mut Vec<u8>, message| {
        numbers.push(message.payload[0]);
        Ok(())
    })
}

fn answer(kind: u16, flags: u16, payload: Vec<u8>) -> Answer {
    Answer { kind, flags, offset: 0, cut: 0, payload }
}

fn number(number: u8, flags: u16) -> Answer {
    answer(16, flags, vec![number, 0, 0, 0])
}

fn done(flags: u16) -> Answer {
    answer(NLMSG_DONE, flags, vec![0; 4])
}

fn ack(code: i32) -> Answer {
    answer(NLMSG_ERROR, 0, code.to_ne_bytes().to_vec())
}

#[test]
fn an_interrupted_dump_is_discarded_and_repeated() {
    let (mut channel, kernel) = scripted(vec![
        vec![number(1, 0), number(2, NLM_F_DUMP_INTR), done(0)],
        vec![number(3, 0), done(NLM_F_DUMP_INTR)],
        vec![number(1, 0), number(2, 0), number(3, 0), done(0)],
    ]);
    assert_eq!(numbers(&mut channel), Ok(vec![1, 2, 3]));
    assert_eq!(kernel.join().unwrap(), 3);
    let fault = "a dump of WireGuard, links or routes that the kernel flags as interrupted";
    let expected = "thrown away and repeated; a part is never taken for all";
    let (bound, lost, converged_in) = (fault::Bound::NotMeasured, None, None);
    fault::Row { fault, expected, bound, lost, converged_in, tier: "scripted kernel" }.print();
}

#[test]
fn what_was_received_is_erased_when_it_was_read() {
    let (mut channel, kernel) = scripted(vec![
        vec![number(1, 0), answer(16, 0, vec![7; 300]), done(0)],
        vec![number(1, NLM_F_DUMP_INTR), done(0)],
        vec![number(2, 0), done(0)],
    ]);
    assert_eq!(numbers(&mut channel), Ok(vec![1, 7]));
    assert!(channel.incoming.iter().all(|byte| *byte == 0));
    assert_eq!(numbers(&mut channel), Ok(vec![2]));
    assert!(channel.incoming.iter().all(|byte| *byte == 0));
    kernel.join().unwrap();
}

#[test]
fn a_datagram_that_is_too_large_is_erased_with_the_next_answer() {
    let large = answer(16, 0, vec![7; buffer().len()]);
    let (mut channel, kernel) = scripted(vec![vec![large], vec![number(1, 0), done(0)]]);
    let errno = Errno::EMSGSIZE;
    assert_eq!(numbers(&mut channel), Err(NetlinkError::Socket { call: "recv", errno }));
    assert!(channel.incoming.contains(&7));
    assert_eq!(numbers(&mut channel), Ok(vec![1]));
    assert!(channel.incoming.iter().all(|byte| *byte == 0));
    kernel.join().unwrap();
}

#[test]
fn a_dump_that_is_never_consistent_is_an_error() {
    let script = vec![vec![number(1, NLM_F_DUMP_INTR), done(0)]; DUMP_TRIES as usize];
    let (mut channel, kernel) = scripted(script);
    let interrupted = Err(NetlinkError::Interrupted { tries: DUMP_TRIES });
    assert_eq!(numbers(&mut channel), interrupted);
    assert_eq!(kernel.join().unwrap(), DUMP_TRIES as usize);
}

#[test]
fn a_late_ack_is_not_taken_for_another() {
    let (mut channel, kernel) = scripted(vec![vec![ack(-1)], vec![ack(0)]]);
    // Sent, and its answer never read.
    channel.push(&REQUEST, 0);
    channel.send().unwrap();
    assert_eq!(channel.request(Request::new(REQUEST)), Ok(()));
    kernel.join().unwrap();
}

#[test]
fn messages_with_a_foreign_sequence_number_are_ignored() {
    let foreign = |answer: Answer| Answer { offset: 7, ..answer };
    let (mut channel, kernel) = scripted(vec![
        vec![foreign(number(9, NLM_F_DUMP_INTR)), number(1, 0), foreign(done(0)), done(0)],
        vec![foreign(ack(-1)), ack(0)],
    ]);
    assert_eq!(numbers(&mut channel), Ok(vec![1]));
    assert_eq!(channel.request(Request::new(REQUEST)), Ok(()));
    kernel.join().unwrap();
}

#[test]
fn a_dump_that_fails_at_its_end_is_an_error() {
    let failed = answer(NLMSG_DONE, 0, (-12i32).to_ne_bytes().to_vec());
    let (mut channel, kernel) = scripted(vec![vec![number(1, 0), failed]]);
    let error = numbers(&mut channel).unwrap_err();
    assert_eq!(error, NetlinkError::Incomplete { errno: Errno::ENOMEM });
    assert_eq!(error.refusal(), Some(Errno::ENOMEM));
    kernel.join().unwrap();
}

#[test]
fn malformed_answers_are_errors() {
    let cut = |answer: Answer, cut| Answer { cut, ..answer };
    let (mut channel, kernel) = scripted(vec![
        vec![cut(number(1, 0), 4), done(0)],
        vec![cut(number(1, 0), 8), done(0)],
        vec![cut(ack(0), 4)],
        vec![answer(NLMSG_ERROR, 0, vec![0; 3])],
    ]);
    let defect = |error: NetlinkError| error.to_string();
    assert_eq!(
        defect(numbers(&mut channel).unwrap_err()),
        "the kernel sent a malformed nlmsghdr: its length of 20 bytes goes past the end: 16 are left"
    );
    assert_eq!(
        defect(numbers(&mut channel).unwrap_err()),
        "the kernel sent a malformed nlmsghdr: 12 bytes are left, too few for a header"
    );
    assert!(defect(channel.request(Request::new(REQUEST)).unwrap_err()).contains("nlmsghdr"));
    assert_eq!(
        defect(channel.request(Request::new(REQUEST)).unwrap_err()),
        "the kernel sent a malformed NLMSG_ERROR: 3 bytes are left, too few for a header"
    );
    kernel.join().unwrap();
}

#[test]
fn an_unusable_answer_is_read_to_its_end() {
    let (mut channel, kernel) =
        scripted(vec![vec![number(1, 0), number(2, 0), done(0)], vec![number(3, 0), done(0)]]);
    let unsuited = NetlinkError::Unsuited("test");
    let refused = channel.dump(&REQUEST, |(), _| Err(unsuited.clone()));
    assert_eq!(refused, Err(unsuited));
    assert_eq!(numbers(&mut channel), Ok(vec![3]));
    kernel.join().unwrap();
}
