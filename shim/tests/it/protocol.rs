//! The wire: what is asked wrongly is refused, and harms nobody else.

use std::io::{Read, Write};
use std::time::Duration;

use estiba_runtime::oci_spec::runtime::{LinuxResources, Process};
use estiba_shim::codec::{self, Decoder, Frame, Kind};
use estiba_shim::proto::{
    Any, AttachRequest, CheckpointTaskRequest, Code, ExecProcessRequest, ExitCode, Request, Response, RuncOptions,
    SHIM_SERVICE, StateRequest, TASK_SERVICE,
};
use prost::Message;

use crate::bundle::{Bundle, SOON};
use crate::{Case, Outcome};

pub(crate) const CASES: &[Case] = &[
    ("methods_that_are_not_built_are_named", methods_that_are_not_built_are_named),
    ("wrong_calls_are_refused", wrong_calls_are_refused),
    ("newer_fields_are_skipped", newer_fields_are_skipped),
    ("garbage_harms_nobody_else", garbage_harms_nobody_else),
    ("many_calls_at_once_are_all_answered", many_calls_at_once_are_all_answered),
    ("a_client_that_reads_nothing_harms_nobody_else", a_client_that_reads_nothing_harms_nobody_else),
    ("options_that_are_not_supported_are_named", options_that_are_not_supported_are_named),
];

fn methods_that_are_not_built_are_named() -> Outcome {
    let bundle = Bundle::new(&["true"]);
    let mut client = bundle.spawn();
    let error = client.call(&CheckpointTaskRequest::default()).expect_err("refused");
    assert_eq!(error.code(), Some(Code::Unimplemented));
    assert!(error.to_string().contains("Checkpoint"), "{error}");
    let errors = [
        client.pause().expect_err("no container"),
        client.resume().expect_err("no container"),
        client.stats().expect_err("no container"),
        client.update(&LinuxResources::default()).expect_err("no container"),
        client.exec(ExecProcessRequest::default(), &Process::default()).expect_err("no container"),
        client.attach(AttachRequest::default()).expect_err("no container"),
        client.detach("", 1).expect_err("no container"),
    ];
    for error in errors {
        assert_eq!(error.code(), Some(Code::NotFound), "{error}");
    }
    client.shutdown()?;
    bundle.assert_gone();
    Ok(())
}

/// Sends bytes and returns the next frame.
fn exchange(bundle: &Bundle, bytes: &[u8]) -> std::io::Result<Option<Frame>> {
    let mut stream = bundle.connect().into_stream();
    stream.write_all(bytes)?;
    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    loop {
        if let Some(frame) = decoder.next_frame().expect("a frame") {
            return Ok(Some(frame));
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(None),
            count => decoder.push(&buffer[..count]),
        }
    }
}

fn frame(stream: u32, kind: u8, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = (data.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(data);
    bytes
}

fn wrong_calls_are_refused() -> Outcome {
    let bundle = Bundle::new(&["true"]);
    let mut client = bundle.spawn();
    let request = |service: &str, method: &str, payload: &[u8]| {
        Request { service: service.into(), method: method.into(), payload: payload.into(), ..Request::default() }
            .encode_to_vec()
    };
    let state = request(TASK_SERVICE, "State", &[]);
    let other_id = StateRequest { id: "other".into(), ..StateRequest::default() }.encode_to_vec();
    let cases = [
        (frame(2, 1, 0, &state), Code::InvalidArgument),
        (frame(1, 1, codec::REMOTE_OPEN, &state), Code::Unimplemented),
        (frame(1, 1, 0, b"\xff\xff\xff"), Code::InvalidArgument),
        (frame(1, 1, 0, &request("containerd.task.v9.Task", "State", &[])), Code::Unimplemented),
        (frame(1, 1, 0, &request(TASK_SERVICE, "Teleport", &[])), Code::Unimplemented),
        (frame(1, 1, 0, &request(SHIM_SERVICE, "Teleport", &[])), Code::Unimplemented),
        (frame(1, 1, 0, &request(SHIM_SERVICE, "State", &[])), Code::Unimplemented),
        (frame(1, 1, 0, &request(TASK_SERVICE, "State", b"\x0a\xff")), Code::InvalidArgument),
        (frame(1, 1, 0, &request(TASK_SERVICE, "State", &other_id)), Code::NotFound),
        (frame(1, 1, codec::REMOTE_CLOSED, &state), Code::NotFound),
    ];
    for (bytes, code) in cases {
        let answer = exchange(&bundle, &bytes)?.expect("an answer");
        assert_eq!((answer.kind, answer.stream), (Kind::Response, bytes[7].into()));
        let response = Response::decode(answer.data.as_slice())?;
        assert_eq!(response.status.map(|status| status.code), Some(code as i32));
    }
    client.shutdown()?;
    bundle.assert_gone();
    Ok(())
}

fn newer_fields_are_skipped() -> Outcome {
    let bundle = Bundle::new(&["true"]);
    let mut client = bundle.spawn();
    // Number 99, a string, in the request and in the message.
    let newer = b"\x9a\x06\x05newer";
    let request = Request {
        service: TASK_SERVICE.into(),
        method: "Connect".into(),
        payload: newer.to_vec(),
        timeout_nano: 5,
        ..Request::default()
    };
    let mut data = request.encode_to_vec();
    data.extend_from_slice(newer);
    let answer = exchange(&bundle, &frame(7, 1, 0, &data))?.expect("an answer");
    assert_eq!(Response::decode(answer.data.as_slice())?.status.map_or(0, |status| status.code), 0);
    client.shutdown()?;
    bundle.assert_gone();
    Ok(())
}

fn garbage_harms_nobody_else() -> Outcome {
    let bundle = Bundle::script("sleep 0.5; exit 3");
    let mut client = bundle.spawn();
    let _stdout = bundle.create(&mut client);
    client.start()?;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 1000], &frame(1, 9, 0, b"x"), &frame(1, 2, 0, b"x")[..5]] {
        let mut stream = bundle.connect().into_stream();
        stream.write_all(garbage)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        // The shim hangs up; with unread bytes that may be a reset.
        let _ = stream.read_to_end(&mut answer);
        assert_eq!(answer, b"");
    }
    assert_eq!(client.wait()?.exit_status, 3);
    client.delete()?;
    client.shutdown()?;
    bundle.assert_gone();
    assert!(bundle.log().contains("dropped a client"), "{}", bundle.log());
    Ok(())
}

fn many_calls_at_once_are_all_answered() -> Outcome {
    let bundle = Bundle::new(&["true"]);
    let mut client = bundle.spawn();
    let mut stream = bundle.connect().into_stream();
    let mut wire = Vec::new();
    for number in 0..2000u32 {
        codec::encode_request(&mut wire, number * 2 + 1, &StateRequest::default())?;
    }
    let mut writer = stream.try_clone()?;
    let sender = std::thread::spawn(move || writer.write_all(&wire));
    let mut decoder = Decoder::default();
    let (mut buffer, mut seen) = ([0; 8192], 0);
    while seen < 2000 {
        let count = stream.read(&mut buffer)?;
        assert!(count > 0, "after {seen}");
        decoder.push(&buffer[..count]);
        while let Some(frame) = decoder.next_frame()? {
            assert_eq!(frame.stream, seen * 2 + 1, "in order");
            seen += 1;
        }
    }
    sender.join().expect("sender")?;
    client.shutdown()?;
    bundle.assert_gone();
    Ok(())
}

fn a_client_that_reads_nothing_harms_nobody_else() -> Outcome {
    let bundle = Bundle::script("sleep 0.5; exit 3");
    let mut client = bundle.spawn();
    let _stdout = bundle.create(&mut client);
    client.start()?;
    let mut deaf = bundle.connect().into_stream();
    deaf.set_nonblocking(true)?;
    let mut request = Vec::new();
    codec::encode_request(&mut request, 1, &StateRequest::default())?;
    // Until the shim takes no more from it.
    let mut refused = 0;
    while refused < 20 {
        if deaf.write_all(&request).is_err() {
            refused += 1;
            std::thread::sleep(Duration::from_millis(5));
        } else {
            refused = 0;
        }
    }
    assert_eq!(client.wait()?.exit_status, 3);
    bundle.finish(&mut client);
    Ok(())
}

fn options_that_are_not_supported_are_named() -> Outcome {
    let bundle = Bundle::new(&["true"]);
    let mut client = bundle.spawn();
    client.set_timeout(Some(SOON))?;
    let mut refused = |options: Any, code: Code, name: &str| {
        let mut request = bundle.request("", "", "");
        request.options = Some(options);
        let error = client.create(request).expect_err("refused");
        assert_eq!(error.code(), Some(code), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    };
    let systemd = RuncOptions { systemd_cgroup: true, ..RuncOptions::default() };
    refused(Any::pack(&systemd), Code::Unimplemented, "systemd_cgroup");
    let cgroup = RuncOptions { shim_cgroup: "/x".into(), ..RuncOptions::default() };
    refused(Any::pack(&cgroup), Code::Unimplemented, "shim_cgroup");
    refused(Any::pack(&ExitCode { code: 1 }), Code::InvalidArgument, "ExitCode");
    let mut request = bundle.request("", "", "");
    request.checkpoint = "/x".into();
    assert!(client.create(request).expect_err("refused").to_string().contains("checkpoint"));
    client.shutdown()?;
    bundle.assert_gone();
    Ok(())
}
