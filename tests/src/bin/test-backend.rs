//! A backend for tests: `test-backend NAME tcp:80 udp:53 ...`. It tells every client
//! who it is and whom it sees, and echoes what follows. Bound to all addresses, and
//! answers from whichever the kernel chooses, as simple servers do.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};

fn main() -> io::Result<()> {
    let mut words = std::env::args().skip(1);
    let name = words.next().expect("a name");
    for listen in words {
        let (protocol, port) = listen.split_once(':').expect("PROTOCOL:PORT");
        let port: u16 = port.parse().expect("a port");
        let name = name.clone();
        match protocol {
            "tcp" => {
                let listener = TcpListener::bind(("0.0.0.0", port))?;
                std::thread::spawn(move || accept(&listener, &name));
            }
            "udp" => {
                let socket = UdpSocket::bind(("0.0.0.0", port))?;
                std::thread::spawn(move || answer(&socket, &name));
            }
            other => panic!("no protocol {other}"),
        }
    }
    loop {
        std::thread::park();
    }
}

fn accept(listener: &TcpListener, name: &str) {
    for stream in listener.incoming().flatten() {
        let name = name.to_owned();
        std::thread::spawn(move || echo(stream, &name));
    }
}

fn echo(mut stream: TcpStream, name: &str) -> io::Result<()> {
    writeln!(stream, "{name} {}", stream.peer_addr()?)?;
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            n => stream.write_all(&bytes[..n])?,
        }
    }
}

fn answer(socket: &UdpSocket, name: &str) {
    let mut bytes = [0; 4096];
    while let Ok((n, peer)) = socket.recv_from(&mut bytes) {
        let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
        // A client that is gone is not our trouble.
        let _ = socket.send_to(format!("{name} {peer} {text}").as_bytes(), peer);
    }
}
