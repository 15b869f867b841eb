//! A whole model as the end of a merged file, its header as one more tensor.
//!
//! A file goes in byte for byte; the parts of a split model as the one file that they make when joined.

use std::ops::Range;
use std::sync::Arc;

use super::{Content, File, Part, Result, TensorInfo, TensorType, Writer};

impl Writer {
    /// Ends the data section with the whole of `base`, a single file: its header becomes the I8 tensor `header_name`, and its
    /// tensors are declared where their data lies inside it.
    pub(in crate::gguf) fn embed(&mut self, base: &File, header_name: &str) -> Result<&mut Writer> {
        self.read_from(base);
        let header_bytes = base.data_start() - base.start();
        let entries = base
            .tensors()
            .iter()
            .map(|tensor: &TensorInfo| (tensor.name(), tensor.ty(), tensor.dims(), tensor.offset()));
        self.declare_embedded(header_name, header_bytes, entries)?;
        let range: Range<u64> = base.start()..base.file_size();
        self.data_bytes += range.end - range.start;
        self.parts.push(Part { content: Content::Range(Arc::clone(base.source()), range), padding: 0 });
        Ok(self)
    }

    /// As [`Writer::embed`], with a file that is not written yet.
    pub(in crate::gguf) fn embed_unwritten(&mut self, base: Writer, header_name: &str) -> Result<&mut Writer> {
        let header = base.header();
        let entries = base.tensors.iter().map(|tensor| (&*tensor.name, tensor.ty, &*tensor.dims, tensor.offset));
        self.declare_embedded(header_name, header.len() as u64, entries)?;
        self.data_bytes += header.len() as u64 + base.data_bytes;
        self.parts.push(Part { content: Content::Bytes(header), padding: 0 });
        self.parts.extend(base.parts);
        self.inputs.extend(base.inputs);
        Ok(self)
    }

    fn declare_embedded<'a>(
        &mut self,
        header_name: &str,
        header_bytes: u64,
        entries: impl Iterator<Item = (&'a str, TensorType, &'a [u64], u64)>,
    ) -> Result<()> {
        let at = self.data_bytes;
        self.declare(header_name, TensorType::I8, &[header_bytes], at)?;
        for (name, ty, dims, offset) in entries {
            self.declare(name, ty, dims, at + header_bytes + offset)?;
        }
        self.closed = true;
        Ok(())
    }
}
