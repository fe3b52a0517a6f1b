//! LUKS headers in every state: whole, damaged, and made to do damage. None crashes, hangs or takes much memory, and
//! none is served that is not on the list.

mod damage;
mod image;
mod operator;
mod refusals;
