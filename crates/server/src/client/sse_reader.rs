//! Reads Server-Sent Events out of a stream of bytes (WHATWG HTML §9.2.6).
//!
//! The rule: no I/O and a bound on what is held; a frame is handed out once its blank line is in.

/// Bytes of one frame: a maximal event in its envelope with every byte escaped fits.
const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;

/// One frame as it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SseFrame {
    /// `event:`; absent for events of the application.
    pub(crate) event: Option<String>,
    /// `id:`: the cursor from here on.
    pub(crate) id: Option<String>,
    /// `data:` lines joined by line feeds.
    pub(crate) data: Option<String>,
    /// `retry:`, milliseconds.
    pub(crate) retry_ms: Option<u64>,
    /// The frame's lines, blank line included, ending in line feeds.
    pub(crate) raw: String,
}

/// A frame was larger than any that a hub sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream has a frame of more than {FRAME_BYTES_MAX} bytes")]
pub(crate) struct FrameTooLarge;

/// A stream that is being read.
#[derive(Debug, Default)]
pub(crate) struct SseReader {
    line: Vec<u8>,
    frame: SseFrame,
    after_carriage_return: bool,
}

impl SseReader {
    /// Takes bytes in and hands out the frames that they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<SseFrame>, FrameTooLarge> {
        let mut frames = Vec::new();
        for part in bytes.split_inclusive(|byte| matches!(byte, b'\n' | b'\r')) {
            let (end, body) = match part.split_last() {
                Some((end @ (b'\n' | b'\r'), body)) => (Some(*end), body),
                _ => (None, part),
            };
            // The second half of CRLF ends no line of its own.
            let second_half = self.after_carriage_return && part == b"\n";
            self.after_carriage_return = end == Some(b'\r');
            if second_half {
                continue;
            }
            if self.line.len() + body.len() + self.frame.raw.len() > FRAME_BYTES_MAX {
                return Err(FrameTooLarge);
            }
            self.line.extend_from_slice(body);
            if end.is_some() {
                frames.extend(self.end_line());
            }
        }
        Ok(frames)
    }

    fn end_line(&mut self) -> Option<SseFrame> {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        self.frame.raw.push_str(&line);
        self.frame.raw.push('\n');
        if line.is_empty() {
            let frame = std::mem::take(&mut self.frame);
            return (frame.raw.len() > 1).then_some(frame);
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "event" => self.frame.event = Some(value.to_owned()),
            "id" if !value.contains('\0') => self.frame.id = Some(value.to_owned()),
            "retry" => self.frame.retry_ms = value.parse().ok(),
            "data" => match &mut self.frame.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.frame.data = Some(value.to_owned()),
            },
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": ok\n\nretry: 2500\nevent: tidings.hello\nid: c1\ndata: {}\n\n\
                          id: c2\r\ndata: a\r\ndata:b\r\n\r\nid: c3\r\rdata: cut off\n";

    fn expected() -> Vec<(Option<&'static str>, Option<&'static str>, Option<&'static str>)> {
        vec![
            (None, None, None),
            (Some("tidings.hello"), Some("c1"), Some("{}")),
            (None, Some("c2"), Some("a\nb")),
            (None, Some("c3"), None),
        ]
    }

    #[test]
    fn frames_are_the_same_wherever_the_bytes_are_cut() {
        for cut in 0..=STREAM.len() {
            let mut reader = SseReader::default();
            let (left, right) = STREAM.as_bytes().split_at(cut);
            let mut frames = reader.feed(left).unwrap();
            frames.extend(reader.feed(right).unwrap());
            let seen: Vec<_> = frames
                .iter()
                .map(|frame| (frame.event.as_deref(), frame.id.as_deref(), frame.data.as_deref()))
                .collect();
            assert_eq!(seen, expected(), "cut at {cut}");
            assert_eq!(frames[1].retry_ms, Some(2500));
        }
    }

    #[test]
    fn a_frame_without_an_end_is_refused_before_it_fills_memory() {
        let mut reader = SseReader::default();
        let chunk = vec![b'x'; 1024 * 1024];
        let refused = (0..9).find_map(|_| reader.feed(&chunk).err());
        assert_eq!(refused, Some(FrameTooLarge));
    }
}
