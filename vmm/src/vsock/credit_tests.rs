//! The credit of both directions against a model that counts without end: sequences of what guest and host do, with
//! counters that begin anywhere, so that they wrap.

use proptest::prelude::*;

use super::*;

/// What happens.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The guest sends so many bytes, whatever its credit.
    Payload(u32),
    /// The guest sends so many bytes, or as many as the host has last told it that there is room for.
    Honest(u32),
    /// So many of the bytes held are delivered, or all of them.
    Forward(u32),
    /// The host sends so many bytes, or as many as it may.
    Send(u32),
    /// The guest takes so many of the bytes that it was sent, or all of them, and says so.
    Take(u32),
    /// The guest changes the size of its buffer.
    Resize(u32),
    /// The host sends what waits to be sent.
    Control,
}

fn step() -> impl Strategy<Value = Step> {
    let amount = || {
        prop_oneof![
            0..100_u32,
            0..=2 * BUF_ALLOC,
            Just(BUF_ALLOC),
            Just(CREDIT_STEP),
            any::<u32>(),
        ]
    };
    prop_oneof![
        1 => amount().prop_map(Step::Payload),
        4 => amount().prop_map(Step::Honest),
        4 => amount().prop_map(Step::Forward),
        4 => amount().prop_map(Step::Send),
        4 => amount().prop_map(Step::Take),
        1 => amount().prop_map(Step::Resize),
        4 => Just(Step::Control),
    ]
}

/// Both ends, counted in 64 bits.
struct Model {
    connection: Connection,
    /// Where the counters began.
    base: (u32, u32),
    received: u64,
    forwarded: u64,
    /// `forwarded` as the guest has last heard it.
    told: u64,
    sent: u64,
    taken: u64,
    /// What the guest has last said of its buffer: its size, and what it had taken by then.
    buffer: (u32, u64),
}

impl Model {
    fn new(base: (u32, u32), buffer: u32) -> Model {
        let mut request = Header {
            src_cid: 3.into(),
            op: op::REQUEST.into(),
            buf_alloc: buffer.into(),
            ..Header::default()
        };
        request.fwd_cnt = base.1.into();
        let mut connection = Connection::accept(&request);
        connection.control();
        let (inwards, outwards) = base;
        connection.received = inwards;
        connection.forwarded = inwards;
        connection.told = inwards;
        connection.sent = outwards;
        Model {
            connection,
            base,
            received: 0,
            forwarded: 0,
            told: 0,
            sent: 0,
            taken: 0,
            buffer: (buffer, 0),
        }
    }

    fn packet(&self, operation: u16, length: u32) -> Header {
        let (size, taken) = self.buffer;
        Header {
            src_cid: 3.into(),
            op: operation.into(),
            len: length.into(),
            buf_alloc: size.into(),
            fwd_cnt: self.base.1.wrapping_add(low(taken)).into(),
            ..Header::default()
        }
    }

    /// The guest hears a header of the host's.
    fn hear(&mut self, header: &Header) {
        assert_eq!(header.buf_alloc.get(), BUF_ALLOC);
        let forwarded = self.base.0.wrapping_add(low(self.forwarded));
        assert_eq!(header.fwd_cnt.get(), forwarded);
        self.told = self.forwarded;
    }

    /// Says whether the connection goes on.
    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Payload(length) => return self.payload(length),
            Step::Honest(most) => {
                let room = u64::from(BUF_ALLOC).saturating_sub(self.received - self.told);
                let length = most.min(low(room));
                assert!(self.payload(length), "an honest guest is refused");
            }
            Step::Forward(most) => {
                let count = low(self.received - self.forwarded).min(most);
                self.connection.forward(count);
                self.forwarded += u64::from(count);
            }
            Step::Send(most) => {
                let allowance = self.connection.allowance();
                let (size, taken) = self.buffer;
                let room = u64::from(size).saturating_sub(self.sent - taken);
                assert_eq!(u64::from(allowance), room.min(MAX_PAYLOAD.into()));
                let count = most.min(allowance);
                let header = self.connection.data(count);
                assert_eq!(header.len.get(), count);
                self.sent += u64::from(count);
                self.hear(&header);
            }
            Step::Take(most) => {
                self.taken += u64::from(low(self.sent - self.taken).min(most));
                self.buffer.1 = self.taken;
                self.update();
            }
            Step::Resize(size) => {
                self.buffer.0 = size;
                self.update();
            }
            Step::Control => {
                while let Some(header) = self.connection.control() {
                    self.hear(&header);
                }
            }
        }
        true
    }

    fn update(&mut self) {
        let update = self.packet(op::CREDIT_UPDATE, 0);
        assert_eq!(self.connection.receive(&update), Outcome::Noted);
    }

    fn payload(&mut self, length: u32) -> bool {
        let fits = self.received - self.forwarded + u64::from(length) <= BUF_ALLOC.into();
        let outcome = self.connection.receive(&self.packet(op::RW, length));
        if fits {
            assert_eq!(outcome, Outcome::Data);
            self.received += u64::from(length);
        } else {
            assert_eq!(outcome, Outcome::Ended { answer: true });
        }
        fits
    }

    fn check(&self) {
        // A guest that has no credit left for want of hearing of it hears of it.
        let unheard = self.forwarded - self.told;
        let waits = self.connection.has_control();
        assert_eq!(waits, unheard >= CREDIT_STEP.into(), "{unheard} unheard");
    }
}

/// No difference of honest counters is longer.
fn low(count: u64) -> u32 {
    u32::try_from(count & u64::from(u32::MAX)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn credit_is_what_an_endless_count_says(
        base in prop_oneof![any::<(u32, u32)>(), Just((0, 0)), Just((u32::MAX - 70_000, u32::MAX - 70_000))],
        buffer in prop_oneof![Just(0), Just(BUF_ALLOC), any::<u32>()],
        steps in prop::collection::vec(step(), 0..64),
    ) {
        let mut model = Model::new(base, buffer);
        for step in steps {
            if !model.step(step) {
                break;
            }
            model.check();
        }
    }

    /// Whatever a guest says of its buffer, what it is sent is bounded by that and by the longest packet.
    #[test]
    fn a_guest_that_lies_gets_no_more_than_it_says(
        sent in any::<u32>(), size in any::<u32>(), taken in any::<u32>(),
    ) {
        let mut model = Model::new((0, 0), 0);
        model.connection.sent = sent;
        model.connection.peer_alloc = size;
        model.connection.peer_forwarded = taken;
        let allowance = model.connection.allowance();
        prop_assert!(allowance <= size.min(MAX_PAYLOAD));
        let under_way = sent.wrapping_sub(taken);
        prop_assert!(u64::from(under_way) + u64::from(allowance) <= u64::from(size).max(under_way.into()));
    }
}
