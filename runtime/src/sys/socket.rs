//! The pair of sockets over which the child reports.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use super::{Call, check, done, fd, own};

/// A connected pair of packet sockets, close-on-exec.
pub(crate) fn pair() -> Call<(OwnedFd, OwnedFd)> {
    let mut fds = [0i32; 2];
    // SAFETY: the array has room for two descriptors.
    let returned =
        unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) };
    done(returned.into())?;
    Ok((own(fds[0]), own(fds[1])))
}

/// A socket to the network of the calling process's namespace,
/// [`netlink(7)`](https://man7.org/linux/man-pages/man7/netlink.7.html).
pub(crate) fn netlink() -> Call<i32> {
    // SAFETY: plain numbers; 0 is NETLINK_ROUTE.
    let returned = unsafe { libc::syscall(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    fd(returned)
}

/// Whether there is something to receive, or the end, within `milliseconds`.
pub(crate) fn readable(socket: BorrowedFd<'_>, milliseconds: i32) -> Call<bool> {
    super::process::ended(socket, milliseconds)
}

/// Room for the control message that carries one descriptor.
#[repr(C, align(8))]
struct Control([u8; 24]);

/// Sends a packet, with a descriptor if there is one. Never raises `SIGPIPE`.
pub(crate) fn send(socket: i32, bytes: &[u8], fd: Option<i32>) -> Call {
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; 24]);
    // SAFETY: all zeroes is a valid message header.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    if let Some(fd) = fd {
        header.msg_control = (&raw mut control).cast();
        header.msg_controllen = control_length() as _;
        // SAFETY: the header's control buffer is large enough for one message.
        let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
        let message = libc::cmsghdr {
            cmsg_len: (size_of::<libc::cmsghdr>() + size_of::<i32>()) as _,
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
            #[cfg(target_env = "musl")]
            __pad1: 0,
        };
        // SAFETY: it points to the start of the control buffer, which is aligned for it.
        unsafe { first.write(message) };
        // SAFETY: the message has one descriptor of data.
        let data = unsafe { libc::CMSG_DATA(first) };
        // SAFETY: as above; the write may be unaligned.
        unsafe { data.cast::<i32>().write_unaligned(fd) };
    }
    loop {
        // SAFETY: the header and all that it points to are valid.
        let returned = unsafe { libc::sendmsg(socket, &raw const header, libc::MSG_NOSIGNAL) };
        match check(returned as _) {
            Err(libc::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// What one descriptor takes in a control message.
fn control_length() -> usize {
    // SAFETY: arithmetic only.
    let length = unsafe { libc::CMSG_SPACE(size_of::<i32>() as u32) };
    length as usize
}

/// Receives a packet and the descriptor that comes with it. An empty packet means that the other side is closed.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Call<(usize, Option<OwnedFd>)> {
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control([0; 24]);
    // SAFETY: all zeroes is a valid message header.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = control_length() as _;
    let length = loop {
        // SAFETY: the header and all that it points to are valid.
        let returned = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        match check(returned as _) {
            Err(libc::EINTR) => {}
            result => break result? as usize,
        }
    };
    // SAFETY: the kernel has filled the header.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    if first.is_null() {
        return Ok((length, None));
    }
    // SAFETY: not null, so it points to a message in the control buffer.
    let message = unsafe { ptr::read(first) };
    if message.cmsg_level != libc::SOL_SOCKET || message.cmsg_type != libc::SCM_RIGHTS {
        return Ok((length, None));
    }
    // SAFETY: the message carries a descriptor.
    let data = unsafe { libc::CMSG_DATA(first) };
    // SAFETY: as above; the read may be unaligned.
    let fd = unsafe { data.cast::<i32>().read_unaligned() };
    Ok((length, Some(own(fd))))
}

/// Receives one byte, in the child. `None` means that the other side is closed.
pub(crate) fn receive_byte(socket: i32) -> Call<Option<u8>> {
    let mut byte = [0u8; 1];
    Ok(if super::file::read(socket, &mut byte)? == 0 { None } else { Some(byte[0]) })
}
