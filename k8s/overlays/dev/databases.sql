-- As prod's clusters have it: each database with an owner of the same name.
CREATE ROLE graph LOGIN PASSWORD 'dev-only';
CREATE ROLE post LOGIN PASSWORD 'dev-only';
CREATE ROLE timeline LOGIN PASSWORD 'dev-only';
CREATE DATABASE graph OWNER graph;
CREATE DATABASE post OWNER post;
CREATE DATABASE timeline OWNER timeline;
