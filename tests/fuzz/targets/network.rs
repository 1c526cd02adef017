//! The kernel's answers about a network namespace, and what the guest is asked because of them: netlink datagrams as
//! bytes, or with the messages and attributes that there are.
//!
//! What must hold: no panic; the same answers are planned the same twice, and no change; no more interfaces than the
//! machine has room for; every request is one whole message whose attributes fill it, of a change as well.

#![no_main]

use chiton_fuzz::Input;
use libfuzzer_sys::fuzz_target;
use runtime::fuzz::network;

/// Attributes of links, addresses, routes, neighbours and rules, and a few that nobody looks at.
const ATTRIBUTES: [u16; 22] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 15, 18, 21, 26, 30, 37, 52, 0x8012, 0x3fff,
];

/// Lengths of the fixed parts, and of the parts that there may be after them.
const FIXED: [usize; 5] = [16, 8, 12, 12, 12];
const KINDS: [u16; 5] = [16, 20, 24, 28, 32];

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let slots = input.below(9);
    let wanted = if input.flag() {
        vec!["eth0".to_owned()]
    } else {
        Vec::new()
    };
    let made = [0, 1, 2, 3, 4].map(|table| datagram(table, &mut input));
    // What changes: some of the tables.
    let later = [0, 1, 2, 3, 4].map(|table: usize| match input.flag() {
        true => datagram(table, &mut input),
        false => made[table].clone(),
    });
    let dumps = [0, 1, 2, 3, 4].map(|table: usize| made[table].as_slice());
    let later = [0, 1, 2, 3, 4].map(|table: usize| later[table].as_slice());
    let planned = network::plan(dumps, &wanted, slots);
    assert_eq!(planned, network::plan(dumps, &wanted, slots));
    let Ok(planned) = planned else { return };
    assert!(
        planned.interfaces.len() <= slots,
        "{:?}",
        planned.interfaces
    );
    planned
        .requests
        .iter()
        .for_each(|request| check(request, 0));

    let same = network::change([dumps, dumps], &wanted, slots).unwrap();
    assert_eq!(same, [Vec::new(), Vec::new()]);
    if let Ok([undone, new]) = network::change([dumps, later], &wanted, slots) {
        let is_link = |message: &[u8]| message[4..6] == KINDS[0].to_ne_bytes();
        let of_links = undone.iter().filter(|(_, message)| is_link(message));
        of_links.for_each(|request| check(request, 0));
        let others = undone.iter().filter(|(_, message)| !is_link(message));
        others.for_each(|request| check(request, 1));
        new.iter().for_each(|request| check(request, 0));
    }
});

/// A request is one whole message, of a kind that there is or, `more` than that, its opposite, and asks for an
/// acknowledgement.
fn check((what, message): &(String, Vec<u8>), more: u16) {
    let number = |at| u16::from_ne_bytes([message[at], message[at + 1]]);
    let kind = KINDS.iter().position(|kind| kind + more == number(4));
    let fixed = 16 + FIXED[kind.expect("a kind of request that there is")];
    let said = u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize;
    assert!(
        said == message.len() && said >= fixed,
        "{what}: {said} of {}",
        message.len()
    );
    assert!(
        number(6) & 5 == 5,
        "{what}: no acknowledgement is asked for"
    );
    let attributes = network::attributes_length(&message[fixed..]);
    assert_eq!(
        attributes,
        message.len() - fixed,
        "{what}: it is not all attributes"
    );
}

fn datagram(table: usize, input: &mut Input<'_>) -> Vec<u8> {
    if input.byte() > 250 {
        let length = usize::from(input.byte());
        return input.bytes(length).to_vec();
    }
    let mut datagram = Vec::new();
    for _ in 0..input.byte() & 3 {
        let mut body = vec![0; FIXED[table]];
        let index = u32::from(input.byte() & 3);
        match table {
            0 => {
                // ARPHRD_ETHER and IFF_UP, mostly.
                body[2] = u8::from(input.byte() < 200);
                body[4..8].copy_from_slice(&index.to_ne_bytes());
                body[8] = input.byte();
                attribute(
                    &mut body,
                    3,
                    if index == 0 { b"chiton1\0" } else { b"eth0\0" },
                    input,
                );
                attribute(&mut body, 1, &[2, 0, 0, 0, 0, 1], input);
                attribute(&mut body, 4, &1500_u32.to_ne_bytes(), input);
            }
            1 => {
                body[0] = input.pick(&[2, 10, 7]);
                body[1] = input.byte();
                body[4..8].copy_from_slice(&index.to_ne_bytes());
            }
            _ => {
                body[0] = input.pick(&[2, 10, 128]);
                for at in 1..FIXED[table] {
                    body[at] = if input.flag() { input.byte() } else { 0 };
                }
                if table == 3 {
                    body[4..8].copy_from_slice(&index.to_ne_bytes());
                    body[8] |= 0x80;
                }
            }
        }
        attributes(&mut body, input, 2);
        let length = 16 + body.len() as u32;
        let length = if input.byte() < 250 {
            length
        } else {
            input.number32()
        };
        datagram.extend(length.to_ne_bytes());
        datagram.extend(KINDS[table].to_ne_bytes());
        datagram.extend([0; 10]);
        datagram.extend(body);
        datagram.resize(datagram.len().next_multiple_of(4), 0);
    }
    datagram
}

/// Adds an attribute, unless the input wants none.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8], input: &mut Input<'_>) {
    if input.byte() > 240 {
        return;
    }
    let length = 4 + value.len() as u16;
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn attributes(body: &mut Vec<u8>, input: &mut Input<'_>, depth: u8) {
    for _ in 0..input.byte() & 7 {
        let kind = input.pick(&ATTRIBUTES);
        let mut value = Vec::new();
        match input.byte() {
            0..=79 => value.extend(u32::from(input.byte() & 3).to_ne_bytes()),
            80..=119 => value.extend(input.bytes(4)),
            120..=159 => value.extend(input.bytes(16)),
            160..=189 if depth > 0 => attributes(&mut value, input, depth - 1),
            190..=219 => {
                // Next hops.
                for _ in 0..input.byte() & 3 {
                    let length = u16::from(input.byte() & 15) + 4;
                    value.extend(length.to_ne_bytes());
                    let hop = usize::from(length) - 2;
                    value.extend(input.bytes(hop));
                }
            }
            _ => {
                let length = usize::from(input.byte());
                value.extend(input.bytes(length));
            }
        }
        attribute(body, kind, &value, input);
    }
}
