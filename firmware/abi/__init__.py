"""The public interface of Xen 4.17 as data: one module per header, both guest widths."""
