//! The arithmetic of changing checksums, against sums of the whole packet, on packets made
//! at random.

#[path = "../../../ebpf/src/checksum.rs"]
mod checksum;
#[path = "../../../ebpf/src/crc32c.rs"]
mod crc32c;

use checksum::Delta;
use netagent_tests::packet::{checksum as sum, crc32c as whole};

/// Numbers without an order to them (xorshift64*), the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// Mostly anything, often what sums stumble on.
    fn word(&mut self) -> [u8; 4] {
        match self.next() % 8 {
            0 => [0; 4],
            1 => [0xff; 4],
            2 => [0xff, 0xff, 0, 0],
            _ => (self.next() as u32).to_ne_bytes(),
        }
    }
}

#[test]
fn crc32c_is_the_one_of_its_standard() {
    // RFC 3720, B.4, and the check value of every catalogue.
    assert_eq!(whole(b"123456789"), 0xe306_9283);
    assert_eq!(whole(&[0; 32]), 0x8a91_36aa);
    assert_eq!(whole(&[0xff; 32]), 0x62a8_ab43);
}

#[test]
fn changed_ports_change_the_crc_as_the_whole_packet_would() {
    let mut random = Random(7);
    let lengths = (12..300).chain([1480, 4095, 4096, 4097, 9000, 65_515, 65_535]);
    for len in lengths {
        let mut packet = random.bytes(len);
        packet[8..12].fill(0);
        let checksum = whole(&packet).to_le_bytes();
        let old = packet[..4].try_into().expect("four bytes");
        let new = random.word();
        packet[..4].copy_from_slice(&new);
        let expected = whole(&packet).to_le_bytes();
        assert_eq!(crc32c::with_ports(checksum, old, new, len as u32), expected, "{len} bytes");
    }
}

#[test]
fn changed_words_change_the_sum_as_the_whole_packet_would() {
    let mut random = Random(11);
    for _ in 0..100_000 {
        let mut packet = random.bytes(24);
        let before = sum(&[&packet]).to_be_bytes();
        let mut delta = Delta::NOTHING;
        for at in [0, 8] {
            let new = random.word();
            let old = packet[at..at + 4].try_into().expect("four bytes");
            delta = delta.and(Delta::of(old, new));
            packet[at..at + 4].copy_from_slice(&new);
        }
        let [a, b, ..] = random.word();
        delta = delta.and(Delta::of_word([packet[4], packet[5]], [a, b]));
        packet[4..6].copy_from_slice(&[a, b]);
        assert_eq!(delta.applied_to(before), sum(&[&packet]).to_be_bytes());
    }
}

#[test]
fn what_stays_leaves_the_checksum_alone() {
    for checksum in [[0, 0], [0xff, 0xff], [0x12, 0x34]] {
        let same = Delta::of([1, 2, 3, 4], [1, 2, 3, 4]);
        assert!(same.is_nothing());
        assert_eq!(same.applied_to(checksum), checksum);
        assert_eq!(same.to_bits(), 0);
    }
}
