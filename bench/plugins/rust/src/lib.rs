//! Work that plugins in Rust do, for bench/compute.js.

use std::io::Cursor;

use extism_pdk::*;

/// The width and height of the images, in pixels of four bytes.
const SIDE: u32 = 192;

#[plugin_fn]
pub fn markdown(text: String) -> FnResult<String> {
  let mut html = String::new();
  pulldown_cmark::html::push_html(&mut html, pulldown_cmark::Parser::new_ext(&text, pulldown_cmark::Options::all()));
  Ok(html)
}

#[plugin_fn]
pub fn png_encode(pixels: Vec<u8>) -> FnResult<Vec<u8>> {
  let mut output = Vec::new();
  let mut encoder = png::Encoder::new(&mut output, SIDE, SIDE);
  encoder.set_color(png::ColorType::Rgba);
  encoder.set_compression(png::Compression::Balanced);
  let mut writer = encoder.write_header()?;
  writer.write_image_data(&pixels)?;
  writer.finish()?;
  Ok(output)
}

#[plugin_fn]
pub fn png_decode(image: Vec<u8>) -> FnResult<Vec<u8>> {
  let mut reader = png::Decoder::new(Cursor::new(image)).read_info()?;
  let size = reader.output_buffer_size().ok_or_else(|| Error::msg("the image is too large"))?;
  let mut pixels = vec![0; size];
  reader.next_frame(&mut pixels)?;
  Ok(pixels)
}
