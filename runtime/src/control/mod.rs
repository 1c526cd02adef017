//! control.sock: how the later verbs speak to the machine process, in frames of the protocol crate. A connection
//! carries one [`Request`], which names the container, and its replies:
//!
//! | request | replies |
//! |---|---|
//! | [`Control::Exec`] | `Executed` or an error; after `Executed` the client may send any number of [`ExecControl`], which are not answered; at last `Exited` |
//! | [`Control::Events`] | `OutOfMemory` each time; the connection ends with the container |
//! | [`Control::Ready`] | one, when the container has said so or has ended |
//! | the others | one |
//!
//! The descriptors of an `Exec` or a `Start` travel with the first byte of its frame (SCM_RIGHTS), in the order of
//! [`ExecRequest::streams`] and [`ExecRequest::extra`], or of the network's interfaces. When the client of an exec goes
//! away before `Exited`, the process in the guest is killed.

mod connection;
mod message;

pub(crate) use connection::{
    Connection, Error, control, control_within, exec, listen, listener, start,
};
pub(crate) use message::{
    Control, ControlReply, DESCRIPTORS_MAX, Direction, ExecControl, ExecRequest, ExtraDescriptor,
    Preserved, Request, Stream,
};
