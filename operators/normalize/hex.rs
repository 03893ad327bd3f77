//! Ids written as hex.

/// What is no hex digit.
const NONE: u8 = 0xff;

/// Value of each byte as a hex digit of either case.
const DIGITS: [u8; 256] = {
    let mut digits = [NONE; 256];
    let mut value = 0;
    while value < 16 {
        digits[b"0123456789abcdef"[value] as usize] = value as u8;
        digits[b"0123456789ABCDEF"[value] as usize] = value as u8;
        value += 1;
    }
    digits
};

/// The `N` bytes that `text` has as 2 N hex digits of either case.
pub(super) fn bytes_of<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    let mut invalid = 0;
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let (high, low) = (DIGITS[pair[0] as usize], DIGITS[pair[1] as usize]);
        invalid |= high | low;
        *byte = high << 4 | (low & 0x0f);
    }
    (invalid < 16).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hex_of_the_right_length_is_an_id() {
        assert_eq!(bytes_of("00Ff7a"), Some([0x00, 0xff, 0x7a]));
        for wrong in ["", "00ff7", "00ff7a0", "00ff7g", "00ff é", "0x00ff"] {
            assert_eq!(bytes_of::<3>(wrong), None, "{wrong}");
        }
    }
}
