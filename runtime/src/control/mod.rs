//! control.sock: how the later verbs speak to the machine process, in frames of the protocol crate. A connection
//! carries one [`Request`], which names the container, and its replies:
//!
//! | request | replies |
//! |---|---|
//! | [`Control::Exec`] | `Executed` or an error; after `Executed` the client may send any number of [`ExecControl`], which are not answered; at last `Exited` |
//! | [`Control::Admit`] | `Admitted` or an error; after `Admitted` the client sends one [`Control::Create`] |
//! | [`Control::Create`] | `Created` or an error; from then on as after the `Executed` of an exec, for the container's init |
//! | [`Control::Network`], and [`Control::Start`] with interfaces | one, after which the client may ask for more |
//! | [`Control::Events`] | `OutOfMemory` each time; the connection ends with the container |
//! | [`Control::Ready`] | one, when the container has said so or has ended |
//! | the others | one |
//!
//! The descriptors of a request travel with the first byte of its frame (SCM_RIGHTS): those of [`Passed`], behind them the
//! journal of a container that is created, or those of the network's interfaces. When the client of an exec or of a
//! container goes away before `Exited`, the process in the guest is killed.

mod connection;
mod message;

pub(crate) use connection::{
    Address, Connection, Error, PATIENCE, control, control_within, exec, listen, listener,
};
pub(crate) use message::{
    Control, ControlReply, CreateRequest, DESCRIPTORS_MAX, Direction, ExecControl, ExecRequest,
    ExtraDescriptor, NetworkChange, Passed, Preserved, Request, Stream,
};
