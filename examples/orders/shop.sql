-- The database, and the plugin's role: it may do no more than the plugin's statements.
\getenv password ORDERS_PASSWORD
CREATE TABLE products (id int PRIMARY KEY, name text NOT NULL, price numeric NOT NULL, sold int NOT NULL DEFAULT 0);
INSERT INTO products VALUES (1, 'tea', 2.50), (2, 'coffee', 4.00);
CREATE ROLE orders LOGIN PASSWORD :'password';
GRANT SELECT ON products TO orders;
GRANT UPDATE (sold) ON products TO orders;
